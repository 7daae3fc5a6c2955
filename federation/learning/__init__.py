"""What is learnt, and how, one idea a file: methods, codecs, and the pieces of local training that `federation.training` joins."""
