"""The reward service: scores groups over gRPC for any trainer (docs/reward_service.md).

`python -m rewards.service` is the server, `rewards.service.client` the client. The messages of reward.proto are the
generated package `videostr_reward_api`, which is a part of the wheel, and which set-up puts into the environment of a checkout.
"""

from __future__ import annotations

try:
    import google.protobuf  # noqa: F401
    import grpc  # noqa: F401
    from videostr_reward_api import reward_pb2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: install the extra service (`pip install 'videostr[service]'`), or in a checkout run "
        "`bash deploy/setup.sh`, which also generates videostr_reward_api from rewards/service/reward.proto",
        name=error.name,
    ) from None

__all__ = ["reward_pb2"]
