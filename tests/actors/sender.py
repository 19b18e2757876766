"""What stands for a learner where engines are tested: holds a policy, changes it, sends its weights; no DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor

from actors.learner.ray_learner import RayLearner
from actors.learner.worker import LearnerWorker
from actors.transfer.request import TransferRequest
from videostr.config.schema import Config
from videostr.config.sections import Lora
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy


class Sender:
    """A learner rank without DeepSpeed: holds weights that differ from the engines' in every parameter."""

    def __init__(self, path: str, dtype: str = "float32") -> None:
        torch.set_num_threads(1)
        self.path = path
        self.policy = load_policy(path, getattr(torch, dtype))
        self.sender: Any = None

    def perturb(self, seed: int, only: str = "") -> list[str]:
        """Add noise to every parameter whose name contains `only`."""
        generator = torch.Generator().manual_seed(seed)
        changed = []
        for name, parameter in self.policy.named_parameters():
            if only in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.2 * max(float(parameter.std()), 0.02) * noise
                changed.append(name)
        return changed

    def freeze_vision(self, frozen: bool) -> None:
        family_of(self.policy.config).tower(self.policy).requires_grad_(not frozen)

    def gather_pieces(self, nbytes: int) -> None:
        """Gather and send the weights in pieces of this size, in a new group."""
        from actors.transfer import source

        source.GATHER_BYTES = nbytes
        if self.sender is not None:
            self.sender.close()

    def save(self, folder: str) -> None:
        self.policy.save_pretrained(folder)

    def send_weights(self, request: TransferRequest) -> dict[str, float]:
        from actors.transfer.sender import WeightSender

        self.sender = self.sender or WeightSender(
            self.policy, 0, family_of(self.policy.config).stacked_parameters
        )
        return self.sender.send(request)

    def adapt(self, targets: list[str]) -> dict[str, str]:
        """Give layers adapters that change their weights; return the digest of every parameter as it is published."""
        from actors.parameters import published
        from actors.transfer.source import weight_digest
        from videostr.grpo.lora import adapted_layers, add_lora

        add_lora(
            self.policy, Lora(rank=2, targets=targets), 0, family_of(self.policy.config).tower(self.policy)
        )
        for layer in adapted_layers(self.policy).values():
            torch.nn.init.normal_(layer.lora_B, std=0.02)
        return {each.name: weight_digest(each.value()) for each in published(self.policy)}

    def merge_adapters(self) -> None:
        """Keep the policy as it is published; all of it is trained again."""
        from videostr.grpo.lora import adapted_layers

        for name, layer in adapted_layers(self.policy).items():
            linear = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            linear.weight.data = layer.merged_weight()
            if layer.bias is not None:
                linear.bias.data = layer.bias.data
            self.policy.set_submodule(name, linear)
        self.policy.requires_grad_(True)

    def favour_placeholders(self) -> None:
        """Make the four placeholders the likeliest tokens."""
        tokenizer = AutoProcessor.from_pretrained(self.path).tokenizer
        rows = tokenizer.convert_tokens_to_ids(list(family_of(self.path).placeholders))
        self.policy.lm_head.weight.data[rows] *= 5

    def make_alike(self, ids: list[int]) -> None:
        """Make tokens as likely as the first of them."""
        first, *others = ids
        weight = self.policy.lm_head.weight.data
        weight[others] = weight[first].clone()

    def forget_to_end(self) -> None:
        """Make the token that ends a completion unlikely."""
        row = AutoProcessor.from_pretrained(self.path).tokenizer.eos_token_id
        self.policy.lm_head.weight.data[row] = 0

    def send_without(self, name: str, request: TransferRequest) -> dict[str, float]:
        """Send all but one parameter, and compare all."""
        from actors.transfer import sender, source

        class Forgetful(source.LearnerWeights):
            def __init__(self, module: torch.nn.Module, **options: Any) -> None:
                super().__init__(module, **options)
                self.parameters = [each for each in self.parameters if each.name != name]
                self.digests[name] = source.weight_digest(module.get_parameter(name).detach())

        complete, sender.LearnerWeights = sender.LearnerWeights, Forgetful  # type: ignore[misc]
        try:
            return self.send_weights(request)
        finally:
            sender.LearnerWeights = complete  # type: ignore[misc]


class Learner(RayLearner):
    """Stands where a learner stands: one rank, the sender."""

    def __init__(self, config: Config, sender: Any, forget: str = "") -> None:
        super().__init__(config, "", (), LearnerWorker)
        self.workers, self.timeout_s = (sender,), 120
        self.forget = forget

    async def call(self, method: str, *arguments: Any, **deadline: Any) -> list[Any]:
        if self.forget:
            return await super().call("send_without", self.forget, *arguments, **deadline)
        return await super().call(method, *arguments, **deadline)
