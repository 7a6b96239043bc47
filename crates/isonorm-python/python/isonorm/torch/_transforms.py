"""Autograd beyond a plain backward pass: torch.func's transforms, forward mode, gradients of gradients.

Values and first gradients are those of isonorm's operators, in the same bits as in a plain call. What they have no
kernel for is the derivative of a composition (`_compose.py`).
"""

import torch
from torch.autograd import forward_ad

#: Whether a transform of torch.func is at work.
is_transformed = getattr(torch._C, "_are_functorch_transforms_active", None) or (
    lambda: torch._C._functorch.peek_interpreter_stack() is not None
)


def are_active():
    """Whether a transform of torch.func, or forward mode, is at work."""
    return is_transformed() or forward_ad._current_level >= 0


def _vjp(compose, inputs, grads):
    """The gradients of the inputs that are there, in their order; `compose` takes all of them."""
    present = [tensor for tensor in inputs if tensor is not None]

    def of_present(*tensors):
        tensors = iter(tensors)
        return compose(*[None if tensor is None else next(tensors) for tensor in inputs])

    return torch.func.vjp(of_present, *present)[1](grads)


def _jvp(function, primals, tangents):
    """The derivative of `function` along tangents, by two backward passes: forward mode may be at work already."""
    known = [torch.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
    values, vjp = torch.func.vjp(function, *primals)
    is_one = not isinstance(values, tuple)
    zeros = torch.zeros_like(values) if is_one else tuple(map(torch.zeros_like, values))
    return torch.func.vjp(vjp, zeros)[1](tuple(known))[0]


def _loop(apply, info, in_dims, args):
    """vmap: one call for each element of the batch, so that each has the bits that it has alone."""

    def element(i, arg, dim):
        return arg.select(dim, i) if isinstance(dim, int) else arg

    calls = [apply(*[element(i, *pair) for pair in zip(args, in_dims, strict=True)]) for i in range(info.batch_size)]
    if not isinstance(calls[0], tuple):
        return torch.stack(calls), 0
    outputs = tuple(None if each[0] is None else torch.stack(each) for each in zip(*calls, strict=True))
    return outputs, tuple(None if output is None else 0 for output in outputs)


class Norm:
    """How a norm is computed and differentiated.

    `forward(options, *inputs)` returns the outputs and then what its backward pass needs besides (`extras`);
    `backward(options, needs, grads, inputs, extras)` the gradients of the inputs, of those that `needs` names;
    `compose(*inputs, *options)` the outputs as a composition. The first `outputs` of forward's are differentiable; the
    backward pass reads the first `reads` inputs, and gets None for the others.
    """

    def __init__(self, inputs, outputs, forward, backward, compose, reads=None):
        self.inputs, self.outputs, self.forward, self.backward = inputs, outputs, forward, backward
        self.reads = inputs if reads is None else reads
        self.compose = compose
        self._norm, self._gradient = _norm_function(self), _gradient_function(self)

    def apply(self, options, *inputs):
        """The outputs, under any transform."""
        return self._norm.apply(options, *inputs)

    def gradient(self, options, needs, grads, inputs, extras):
        """The gradients of the inputs, differentiable themselves."""
        return self._gradient.apply(options, needs, *grads, *inputs, *extras)

    def read(self, inputs):
        """The inputs as the backward pass gets them."""
        return *inputs[: self.reads], *[None] * (self.inputs - self.reads)

    def composed(self, options):
        return lambda *inputs: self.compose(*inputs, *options)


def _norm_function(norm):
    class NormFunction(torch.autograd.Function):
        @staticmethod
        def forward(options, *inputs):
            return norm.forward(options, *inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            options, *tensors = inputs
            results = output if isinstance(output, tuple) else (output,)
            extras = results[norm.outputs :]
            ctx.options, ctx.results = options, len(results)
            ctx.mark_non_differentiable(*extras)
            tensors = norm.read(tensors)
            ctx.save_for_backward(*tensors, *extras)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx, *grads):
            saved = ctx.saved_tensors
            needs = ctx.needs_input_grad[1:]
            inputs, extras = saved[: norm.inputs], saved[norm.inputs :]
            grads = norm.gradient(ctx.options, needs, grads[: norm.outputs], inputs, extras)
            return None, *grads

        @staticmethod
        def jvp(ctx, _, *tangents):
            inputs = ctx.saved_tensors[: norm.inputs]
            places = [i for i, tensor in enumerate(inputs) if tensor is not None]

            def of_present(*present):
                tensors = list(inputs)
                for i, tensor in zip(places, present, strict=True):
                    tensors[i] = tensor
                return norm.compose(*tensors, *ctx.options)

            results = _jvp(of_present, [inputs[i] for i in places], [tangents[i] for i in places])
            if ctx.results == 1:
                return results
            results = results if isinstance(results, tuple) else (results,)
            return *results, *[None] * (ctx.results - len(results))

        @staticmethod
        def vmap(info, in_dims, *args):
            return _loop(NormFunction.apply, info, in_dims, args)

    return NormFunction


def _gradient_function(norm):
    count = norm.outputs + norm.inputs  # the gradients of the outputs, then the inputs, then extras

    class GradientFunction(torch.autograd.Function):
        @staticmethod
        def forward(options, needs, *args):
            grads, inputs, extras = args[: norm.outputs], args[norm.outputs : count], args[count:]
            found = norm.backward(options, needs, grads, inputs, extras)
            return tuple(g if need else None for g, need in zip(found, needs, strict=True))

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.options, ctx.needs, *args = inputs
            ctx.save_for_backward(*args)
            ctx.save_for_forward(*args)

        @staticmethod
        def function(options, needs, args):
            """What forward computes, as a function of those arguments that are there, and their places."""
            places = [i for i, arg in enumerate(args[:count]) if arg is not None]

            def of_present(*present):
                known = list(args[:count])
                for i, tensor in zip(places, present, strict=True):
                    known[i] = tensor
                grads, inputs = known[: norm.outputs], known[norm.outputs :]
                grads = grads[0] if norm.outputs == 1 else tuple(grads)
                found = iter(_vjp(norm.composed(options), inputs, grads))
                found = [None if tensor is None else next(found) for tensor in inputs]
                return tuple(g for g, need in zip(found, needs, strict=True) if need)

            return of_present, places

        @staticmethod
        def backward(ctx, *grads):
            args = ctx.saved_tensors
            function, places = GradientFunction.function(ctx.options, ctx.needs, args)
            values, vjp = torch.func.vjp(function, *[args[i] for i in places])
            wanted = [g for g, need in zip(grads, ctx.needs, strict=True) if need]
            wanted = tuple(torch.zeros_like(v) if g is None else g for v, g in zip(values, wanted, strict=True))
            found = dict(zip(places, vjp(wanted), strict=True))
            return None, None, *[found.get(i) for i in range(len(args))]

        @staticmethod
        def jvp(ctx, _, __, *tangents):
            args = ctx.saved_tensors
            function, places = GradientFunction.function(ctx.options, ctx.needs, args)
            found = iter(_jvp(function, [args[i] for i in places], [tangents[i] for i in places]))
            return tuple(next(found) if need else None for need in ctx.needs)

        @staticmethod
        def vmap(info, in_dims, *args):
            return _loop(GradientFunction.apply, info, in_dims, args)

    return GradientFunction
