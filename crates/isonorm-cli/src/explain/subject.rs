//! What is explained: the data, its layout, weight and bias, and the options, out of the command line.

use isonorm::{DType, Slice};

use super::compute::{Affine, Kind, Options};
use super::document::{MOST_COLUMNS, MOST_GRIDS, MOST_ROWS};
use super::json::{self, Numbers};
use super::layout::{Layout, Together};
use super::number::{count, counted, exact};
use super::values::{Values, gather};
use super::{Args, Norm};
use crate::args::RecipeName;
use crate::error::{Error, Result};
use crate::rows::gemma_without_weight;
use crate::tensor::{Buffer, Place, Tensor};

/// The most elements that are computed for an explanation: what a person waits for.
const MOST_ELEMENTS: usize = 1 << 24;

/// One norm of one tensor.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) options: Options,
    pub(crate) layout: Layout,
    /// The computed part of x.
    pub(crate) x: Values,
    pub(crate) weight: Option<Values>,
    pub(crate) bias: Option<Values>,
    /// The gradient of y, for the backward pass: given, or ones.
    pub(crate) dy: Option<Dy>,
    pub(crate) digits: usize,
    pub(crate) order: bool,
    /// x in words: `3 rows of 3 elements, f32`.
    pub(crate) described: String,
}

/// The gradient of y.
#[derive(Debug)]
pub(crate) enum Dy {
    Given(Values),
    Ones(Values),
}

impl Dy {
    pub(crate) fn values(&self) -> &Values {
        match self {
            Dy::Given(values) | Dy::Ones(values) => values,
        }
    }

    /// All of it, of the shape of x.
    fn read(args: &Args, x: &Source, layout: &Layout) -> Result<Self> {
        let Some(text) = &args.dy else {
            return Ok(Dy::Ones(Values::filled(1.0, layout.len(), x.dtype())));
        };
        let source = if text.trim_start().starts_with('[') {
            Source::given("--dy", json::parse("--dy", text)?, x.dtype())?
        } else {
            Source::file(text, args.bf16)?
        };
        if source.shape != x.shape {
            let expected = format!("{:?} as x has", x.shape);
            return Err(Error::Shape { at: "--dy".to_owned(), found: source.shape, expected });
        }
        Ok(Dy::Given(source.part(layout.computed, layout.whole)))
    }
}

/// Numbers with a shape, from the command line or from a file.
pub(crate) struct Source {
    data: Data,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

enum Data {
    Given(Values),
    File(Buffer),
}

impl Source {
    /// X, `--data`, or an example.
    pub(crate) fn of(args: &Args) -> Result<Self> {
        let numbers = match (&args.x, &args.data) {
            (Some(x), _) => return Source::file(x, args.bf16),
            (None, Some(data)) => json::parse("--data", data)?,
            (None, None) => example(args.norm),
        };
        Source::given("--data", numbers, args.dtype.map_or(DType::F32, DType::from))
    }

    fn file(text: &str, bf16: bool) -> Result<Self> {
        let tensor = Tensor::open(&text.parse::<Place>()?, bf16)?;
        let (shape, strides) = (tensor.shape.clone(), tensor.strides());
        if tensor.is_empty() || shape.is_empty() {
            let found = format!("{} has shape {shape:?}, which has no row to explain", tensor.place);
            return Err(Error::usage(found, "name a tensor of at least one axis and one element"));
        }
        Ok(Source { data: Data::File(tensor.whole()?), shape, strides })
    }

    fn given(name: &str, numbers: Numbers, dtype: DType) -> Result<Self> {
        let Numbers { shape, values } = numbers;
        let rounded = Values::rounded(values.iter().copied(), dtype);
        if let Some(lost) = (0..values.len()).find(|&i| !rounded.at(i).is_finite()) {
            let found = format!("{name} holds {:e}, which is too large for {dtype}", values[lost]);
            return Err(Error::usage(found, "give smaller numbers, or add --dtype f64"));
        }
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Ok(Source { data: Data::Given(rounded), shape, strides })
    }

    fn slice(&self) -> Slice<'_> {
        match &self.data {
            Data::Given(values) => values.as_slice(),
            Data::File(buffer) => buffer.slice(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        self.slice().dtype()
    }

    /// Where the element of this number in row-major order lies.
    fn offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for (len, stride) in self.shape.iter().zip(&self.strides).rev() {
            offset += index % len * stride;
            index /= len;
        }
        offset
    }

    /// The first `computed` of `whole`, in row-major order.
    fn part(&self, computed: [usize; 3], whole: [usize; 3]) -> Values {
        let [_, rows, columns] = whole;
        let indices = (0..computed[0]).flat_map(move |g| {
            (0..computed[1]).flat_map(move |r| (0..computed[2]).map(move |c| (g * rows + r) * columns + c))
        });
        gather(self.slice(), indices.map(|index| self.offset(index)))
    }
}

/// What a weight or bias must be.
struct Parameter<'a> {
    /// `weight` or `bias`.
    name: &'static str,
    layout: &'a Layout,
    x: DType,
    bf16: bool,
}

impl Parameter<'_> {
    /// Its values for the computed part, out of JSON or a tensor file.
    fn read(&self, text: &str) -> Result<Values> {
        let source = if text.trim_start().starts_with('[') {
            let option = format!("--{}", self.name);
            Source::given(&option, json::parse(&option, text)?, self.x)?
        } else {
            Source::file(text, self.bf16)?
        };
        let (name, found) = (self.name, source.shape.iter().product());
        let by_column = self.layout.together == Together::Column || self.layout.unit == "row";
        let axis = if by_column { 2 } else { 1 };
        let per = if self.layout.unit == "row" { "normalized element" } else { "channel" };
        let (expected, kept) = (self.layout.whole[axis], self.layout.computed[axis]);
        if found != expected {
            return Err(isonorm::Error::ParameterLen { name, per, expected, found }.into());
        }
        Ok(source.part([1, 1, kept], [1, 1, expected]))
    }
}

/// What is explained when nothing is given: small numbers whose results can be checked in the head.
fn example(norm: Norm) -> Numbers {
    const SECOND: [f64; 12] = [5., 1., 3., 2., 8., 2., 0., 4., 8., 9., 9., 0.];
    let counting = |n: u8| (1..=n).map(f64::from);
    match norm {
        Norm::GroupNorm | Norm::InstanceNorm => {
            Numbers { shape: vec![2, 4, 3], values: counting(12).chain(SECOND).collect() }
        }
        _ => Numbers { shape: vec![3, 3], values: counting(9).collect() },
    }
}

impl Subject {
    /// Reads everything that the command line names, for `norm`.
    pub(crate) fn new(args: &Args, norm: Norm, source: &Source) -> Result<Self> {
        let options = options(args, norm)?;
        let layout = layout(options.kind, extents(norm, source)?)?;
        let layout = if args.backward { layout.of_whole_batch() } else { layout };
        Subject::laid_out(args, options, layout, source)
    }

    /// For a comparison: all of x, whose last axis is the columns and everything before it the rows.
    pub(crate) fn compared(args: &Args, norm: Norm, source: &Source) -> Result<Self> {
        let options = options(args, norm)?;
        let whole = extents(Norm::Compare, source)?;
        let (together, unit) =
            if norm == Norm::BatchNorm { (Together::Column, "channel") } else { (Together::Row, "row") };
        let layout = Layout { computed: whole, whole, names: ["", "row", "column"], together, unit };
        Subject::laid_out(args, options, layout, source)
    }

    fn laid_out(args: &Args, options: Options, layout: Layout, source: &Source) -> Result<Self> {
        if layout.computed.iter().try_fold(1usize, |n, len| n.checked_mul(*len)).is_none_or(|n| n > MOST_ELEMENTS) {
            let found = format!(
                "x has shape {:?}: its explanation would take more than {MOST_ELEMENTS} elements",
                source.shape
            );
            return Err(Error::usage(found, "name a part of it"));
        }
        let parameter = |name, text: &Option<String>| {
            let parameter = Parameter { name, layout: &layout, x: source.dtype(), bf16: args.bf16 };
            text.as_ref().map(|text| parameter.read(text)).transpose()
        };
        let (weight, bias) = (parameter("weight", &args.weight)?, parameter("bias", &args.bias)?);
        let x = source.part(layout.computed, layout.whole);
        let dy = args.backward.then(|| Dy::read(args, source, &layout)).transpose()?;
        let described = described(&layout, source);
        Ok(Subject { options, layout, x, weight, bias, dy, digits: args.digits.into(), order: args.order, described })
    }

    pub(crate) fn affine(&self) -> Affine<'_> {
        Affine { weight: self.weight.as_ref(), bias: self.bias.as_ref() }
    }

    /// eps and where it stands.
    pub(crate) fn eps(&self) -> String {
        let place = if self.options.eps_outside { "outside the root" } else { "inside the root" };
        format!("{} {place}", exact(self.options.eps, DType::F64))
    }
}

fn options(args: &Args, norm: Norm) -> Result<Options> {
    let only = |given: bool, what: &str, norms: &str| {
        let remedy = format!("leave it out, or explain {norms}");
        if given { Err(Error::usage(format!("{what} is an option of {norms} alone"), remedy)) } else { Ok(()) }
    };
    if norm != Norm::RmsNorm {
        only(args.recipe != RecipeName::Torch, "--recipe", "rms-norm")?;
        only(args.partial.is_some(), "--partial", "rms-norm")?;
    }
    if args.recipe == RecipeName::Gemma && args.weight.is_none() {
        return Err(gemma_without_weight());
    }
    if norm != Norm::GroupNorm {
        only(args.groups.is_some(), "--groups", "group-norm")?;
    }
    let kind = match norm {
        Norm::RmsNorm => {
            let (recipe, weight_offset) = args.recipe.parts();
            Kind::Rms { recipe, weight_offset, partial: args.partial }
        }
        Norm::BatchNorm => Kind::Batch,
        Norm::GroupNorm => Kind::Group { groups: args.groups.unwrap_or(2) },
        Norm::InstanceNorm => Kind::Instance,
        Norm::LayerNorm | Norm::Compare => Kind::Layer,
    };
    let default = if norm == Norm::RmsNorm { 1e-6 } else { 1e-5 };
    Ok(Options { kind, eps: args.eps.unwrap_or(default), eps_outside: args.eps_outside })
}

/// `[1, rows, hidden]`, or `[samples, channels, positions]`.
fn extents(norm: Norm, source: &Source) -> Result<[usize; 3]> {
    let Some((&last, leading)) = source.shape.split_last() else {
        return Err(Error::usage("x has no axis", "give at least one row of numbers"));
    };
    if matches!(norm, Norm::RmsNorm | Norm::LayerNorm | Norm::Compare) {
        return Ok([1, leading.iter().product(), last]);
    }
    let given = matches!(source.data, Data::Given(_));
    Ok(match source.shape.as_slice() {
        [channels] => [1, *channels, 1],
        // Numbers in a row are positions to whoever types them; a file is read as the norm's own command reads it.
        [channels, positions] if norm == Norm::InstanceNorm && given => [1, *channels, *positions],
        [samples, channels, spatial @ ..] => [*samples, *channels, spatial.iter().product()],
        [] => [1, 1, 1],
    })
}

fn layout(kind: Kind, whole: [usize; 3]) -> Result<Layout> {
    let [samples, channels, positions] = whole;
    let names = ["sample", "channel", "position"];
    let (computed, together, unit) = match kind {
        Kind::Rms { .. } | Kind::Layer => {
            let computed = [1, channels.min(MOST_ROWS), positions];
            return Ok(Layout { computed, whole, names: ["", "row", "hidden"], together: Together::Row, unit: "row" });
        }
        Kind::Batch if positions == 1 => {
            let computed = [1, samples, channels.min(MOST_COLUMNS)];
            let (whole, names) = ([1, samples, channels], ["", "sample", "channel"]);
            return Ok(Layout { computed, whole, names, together: Together::Column, unit: "channel" });
        }
        Kind::Batch => ([samples, channels.min(MOST_ROWS), positions], Together::Row, "channel"),
        Kind::Group { groups } => {
            if groups == 0 || channels % groups != 0 {
                return Err(isonorm::Error::Groups { groups, channels }.into());
            }
            let together = Together::RowsOfOneGrid(channels / groups);
            ([samples.min(MOST_GRIDS), channels, positions], together, "group")
        }
        Kind::Instance => {
            let computed = [samples.min(MOST_GRIDS), channels.min(MOST_ROWS), positions];
            (computed, Together::RowsOfOneGrid(1), "channel")
        }
    };
    Ok(Layout { computed, whole, names, together, unit })
}

fn described(layout: &Layout, source: &Source) -> String {
    let [grids, rows, columns] = layout.whole;
    let dtype = source.dtype();
    if layout.unit == "row" {
        return format!("{} of {}, {dtype}", counted(rows, "row"), counted(columns, "element"));
    }
    if layout.together == Together::Column {
        return format!("{} of {}, {dtype}", counted(rows, "sample"), counted(columns, "channel"));
    }
    let positions = if columns == 1 { String::new() } else { format!(" of {} positions", count(columns)) };
    format!("{} of {}{positions}, {dtype}", counted(grids, "sample"), counted(rows, "channel"))
}
