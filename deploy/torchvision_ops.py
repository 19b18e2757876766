"""Lets a CUDA build of torchvision be imported next to a CPU build of torch.

Such a torchvision cannot load its C++ operators, and its import then fails with "operator torchvision::nms does not
exist", because it registers fake kernels for operators that nobody defined. `deploy/setup.sh` copies this module and
a `.pth` file naming it into site-packages where, and only where, that import fails; the `.pth` file makes every
process of the environment run it, so also those that vLLM starts itself.

It puts a finder on `sys.meta_path` that waits for `torchvision.extension`, the module that would load the operators;
by then torch is imported. The operators get a schema and no kernel: calling one still raises, and nothing in a
Qwen-VL calls one. Processes that never import torchvision pay for this module's few lines only.
"""

import sys


class _DefineMissingOperators:
    library = None  # a torch Library takes its operators back when it is collected

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # noqa: ARG003 - the protocol of sys.meta_path
        if name == "torchvision.extension" and cls.library is None:
            import torch

            cls.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _DefineMissingOperators)
