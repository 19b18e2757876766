"""The learner: a `LearnerBatch` in, one or more optimizer steps and a new weight version out.

    ray_learner   `RayLearner`, the driver's side: starts the ranks, speaks for all of them
    worker        `LearnerWorker`, the process of one DeepSpeed rank: its collectives
    policy        what a rank trains: policy, frozen tower, reference model, DeepSpeed's engine
    rows          the packed rows of a batch that are this rank's
    update        forward and backward passes, optimizer steps, metrics
    snapshot      what a rank writes of a checkpoint, in host memory
    state         the optimizer's state on disk

Every rank gets the whole batch, plans the same rows, and encodes and computes its own.
"""
