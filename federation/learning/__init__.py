"""The pieces of local training, one idea a file: loss, augmentation, schedule, optimiser. `federation.training` joins them."""
