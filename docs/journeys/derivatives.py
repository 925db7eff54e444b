"""A Hessian-vector product, and a Jacobian by forward mode and by reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops import deform_conv2d

keys = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(keys[0], (1, 5, 5, 2))
kernel = jax.random.normal(keys[1], (3, 3, 2, 2))
offset = jax.random.uniform(keys[2], (1, 5, 5, 1, 9, 2), minval=0.1, maxval=0.9)
vector = jax.random.normal(keys[3], offset.shape)


def layer(offset):
    return deform_conv2d(x, offset, kernel)


def energy(offset):
    return jnp.square(layer(offset)).sum()


@jax.jit
def hessian_vector_product(offset, vector):
    return jax.jvp(jax.grad(energy), (offset,), (vector,))[1]


product = hessian_vector_product(offset, vector)
# Within a pixel sampling is linear in x and in y: a difference of gradients is near.
step = 1e-3
above, below = (jax.grad(energy)(offset + sign * step * vector) for sign in (1, -1))
scale = float(jnp.abs(product).max())
np.testing.assert_allclose(product, (above - below) / (2 * step), atol=1e-2 * scale)

forward = jax.jit(jax.jacfwd(layer))(offset)
reverse = jax.jit(jax.jacrev(layer))(offset)
np.testing.assert_allclose(forward, reverse, atol=1e-5)
print(f"HVP {product.shape}, Jacobian {forward.shape}: forward and reverse agree")
