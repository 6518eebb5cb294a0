"""A checkpoint and a batch of token ids in, log-odds out, with PyTorch, OpenVINO or ONNX Runtime behind one call.

In: a checkpoint in memory or a folder that ``conversion`` wrote, and padded batches. Out: the log-odds of commerce or,
of a part of an encoder's layers, the states after them. Each library is imported only when its engine is opened, so
that a deployment needs only one of them. OpenVINO's int8 is calibrated by NNCF on training articles; ONNX Runtime's is
quantised dynamically. Both leave in fp32 the head, an encoder's last layer, and the matrices whose inputs range too
widely on training articles. Does not belong here: which articles are read, how far, and through how many layers.
"""
