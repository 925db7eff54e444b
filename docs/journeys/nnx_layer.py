"""A deformable convolution in a Flax NNX model learns how far an image moved."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dcn_jax import DeformConv


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.deform = DeformConv(8, 1, (3, 3), rngs=rngs)

    def __call__(self, images):
        return self.deform(nnx.relu(self.conv(images)))


@nnx.jit
def train_step(net, optimizer):
    def loss(net):
        return jnp.square(net(images) - moved).mean()

    value, gradients = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradients)
    return value


images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 1))
images = jax.image.resize(images, (4, 32, 32, 1), "cubic")
moved = jnp.roll(images, (2, 3), axis=(1, 2))
net = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(net, optax.adam(0.01), wrt=nnx.Param)
losses = [float(train_step(net, optimizer)) for _ in range(100)]
positions, weights = net.deform.sampling(nnx.relu(net.conv(images)))[:2]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, positions {positions.shape}")
