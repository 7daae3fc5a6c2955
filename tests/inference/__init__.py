"""ONNX: conversion, agreement with PyTorch, int8, pictures, and the commands that use them."""
