"""The reward service: scores groups over gRPC for any trainer (docs/reward_service.md).

`python -m rewards.service` is the server, `rewards.service.client` the client. The messages of reward.proto are the
generated package `videostr_reward_api`, which set-up puts into the environment.
"""

from __future__ import annotations

try:
    from videostr_reward_api import reward_pb2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "videostr_reward_api is not installed: it is generated from rewards/service/reward.proto; "
        "run `bash deploy/setup.sh`",
        name=error.name,
    ) from None

__all__ = ["reward_pb2"]
