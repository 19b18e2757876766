"""Weights from the learner into the engines, through vLLM's weight-transfer API; only this package knows that API.

In: the learner's parameters under Hugging Face names, whatever the ZeRO stage. Out: engines that serve them under a new
weight version. Each process has modules of its own:

    driver           `request`: what is to be transferred; imports no vLLM (20 s)
    learner rank     `source`: gathers and streams the parameters; `sender`: rank 0 alone speaks to the engines
    rollout actor    `receiver`: passes the control calls on to `AsyncLLM`, resets the caches that went stale
    engine process   `engine`: vLLM's hooks; `readback`: reads the running weights
    both ends        `gloo`: a backend that does over CPU what vLLM's own `nccl` does on GPUs

Every engine has its own ranks in the transfer group: engine i starts at 1 + i * ranks per engine, the sender is rank 0. (vLLM's
own Ray client gives all engines the same offset: right for the replicas of one deployment, a collision for separate engines.)
"""
