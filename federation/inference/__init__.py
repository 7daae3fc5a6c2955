"""A global model as ONNX: convert, quantise, run, measure, and use without PyTorch.

pytorch is the one file that needs torch; card, engine, classifier and pictures are all that a device needs to use a model.
"""
