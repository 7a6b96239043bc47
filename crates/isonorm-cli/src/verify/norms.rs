//! The norm of a golden case with its options.

use isonorm::{BatchNorm, Cpu, GroupNorm, LayerNorm, Recipe, RmsNorm};

use super::case::Case;

macro_rules! with_options {
    ($case:expr, $cpu:expr, $norm:expr) => {{
        let mut norm = $norm.on($cpu).eps($case.options.eps).weight_offset($case.options.weight_offset);
        if $case.options.eps_outside {
            norm = norm.eps_outside();
        }
        if let Some(weight) = &$case.weight {
            norm = norm.weight(weight.slice());
        }
        if let Some(bias) = &$case.bias {
            norm = norm.bias(bias.slice());
        }
        norm
    }};
}

pub(super) fn rms<'a>(case: &'a Case, cpu: Cpu<'a>) -> RmsNorm<'a> {
    let recipe = if case.options.llama { Recipe::Llama } else { Recipe::Torch };
    let norm = with_options!(case, cpu, RmsNorm::new(case.shape[1])).recipe(recipe);
    case.options.partial.map_or(norm, |k| norm.partial(k))
}

pub(super) fn layer<'a>(case: &'a Case, cpu: Cpu<'a>) -> LayerNorm<'a> {
    with_options!(case, cpu, LayerNorm::new(case.shape[1]))
}

pub(super) fn group<'a>(case: &'a Case, cpu: Cpu<'a>, channels: usize) -> GroupNorm<'a> {
    with_options!(case, cpu, GroupNorm::new(case.options.groups.unwrap_or(1), channels))
}

pub(super) fn batch<'a>(case: &'a Case, cpu: Cpu<'a>, channels: usize) -> BatchNorm<'a> {
    with_options!(case, cpu, BatchNorm::new(channels))
}
