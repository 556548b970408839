import pytest
import torch
import torch.nn.functional as F

from worldmodel.model.attention import attend
from worldmodel.model.visibility import Visibility, additive

# B clips, H heads, L queries, J keys, d head width.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_on_the_cpu_equals_pytorch_with_mask_and_gradients(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=generator) for n in (20, 33, 33))
    mask = (torch.rand(2, 1, 20, 33, generator=generator) < 0.4) | torch.eye(20, 33, dtype=torch.bool)
    ours, theirs = ([x.to(dtype).requires_grad_() for x in (q, k, v)] for _ in range(2))
    out = attend(*ours, Visibility(additive(mask, dtype)))
    reference = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out, reference, atol=tolerance, rtol=tolerance)
    out.float().square().sum().backward()
    reference.float().square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=10 * tolerance, rtol=10 * tolerance)


def test_a_query_that_sees_one_key_returns_its_value():
    q, k, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    torch.testing.assert_close(
        attend(q, k, v, Visibility(additive(torch.eye(4, dtype=torch.bool)[None, None], q.dtype))), v
    )
