"""The same in Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dcn_jax.modules import linen


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        images = nn.relu(nn.Conv(8, (3, 3))(images))
        return linen.DeformConv(1, (3, 3))(images)


@jax.jit
def train_step(variables, state):
    def loss(variables):
        return jnp.square(net.apply(variables, images) - moved).mean()

    value, gradients = jax.value_and_grad(loss)(variables)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(variables, updates), state, value


images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 1))
images = jax.image.resize(images, (4, 32, 32, 1), "cubic")
moved = jnp.roll(images, (2, 3), axis=(1, 2))
net, optimizer = Net(), optax.adam(0.01)
variables = net.init(jax.random.key(0), images)
state = optimizer.init(variables)
losses = []
for _ in range(100):
    variables, state, value = train_step(variables, state)
    losses.append(float(value))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
