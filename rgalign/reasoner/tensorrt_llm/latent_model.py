"""An out-of-tree ``Qwen3ForCausalLM`` for TensorRT-LLM's PyTorch backend that returns the state, not the logits.

    {"hidden_states": H[last of each sequence] after the final norm, [B, D],  "logits": zeros [B, V]}

TensorRT-LLM hands the state straight to the LM head, so no option returns it (its issue 4414). A model's forward may
return a dictionary, whose entries come back as additional outputs; registering a class under the architecture's name
replaces the original (examples/llm-api/out_of_tree_example). The sampler must see logits, and nobody reads its token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OUTPUT = "hidden_states"
ARCHITECTURE = "Qwen3ForCausalLM"


def last_states(hidden: Tensor, seq_lens: Tensor) -> Tensor:
    """[B, D] float32: of packed states [T, D], the last of each sequence.

    Args:
        seq_lens: [B] lengths that add up to T.
    """
    last = torch.cumsum(seq_lens, dim=0, dtype=torch.long) - 1
    return hidden[last].float()


def register_latent_model(*, encode: bool) -> type[Any]:
    """Puts the class in the original's place, in this process.

    Args:
        encode: for ``llm.encode()``, which returns what stands under "logits": the state then.
    """
    from tensorrt_llm._torch.models.modeling_qwen3 import Qwen3ForCausalLM
    from tensorrt_llm._torch.models.modeling_utils import register_auto_model

    # The name in TensorRT-LLM's module stays its own class, so registering twice does not derive from ourselves.
    class LatentQwen3ForCausalLM(Qwen3ForCausalLM):  # type: ignore[misc]
        def forward(
            self,
            attn_metadata: Any,
            input_ids: Tensor | None = None,
            position_ids: Tensor | None = None,
            inputs_embeds: Tensor | None = None,
            return_context_logits: bool = False,
            **others: Any,
        ) -> dict[str, Tensor]:
            hidden = self.model(
                input_ids=input_ids,
                attn_metadata=attn_metadata,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **others,
            )
            if getattr(attn_metadata, "padded_num_tokens", None) is not None:
                hidden = hidden[: attn_metadata.num_tokens]
            states = last_states(hidden, attn_metadata.seq_lens_cuda)
            if encode:
                return {"logits": states}
            return {"logits": states.new_zeros(len(states), self.config.vocab_size), OUTPUT: states}

    registered: type[Any] = register_auto_model(ARCHITECTURE)(LatentQwen3ForCausalLM)
    return registered
