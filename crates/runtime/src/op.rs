//! Operators: each is declared once, by one constant, and everything else derives from that.
//!
//! A [`Declaration`] says what an operator is called and takes (its ATen schema), what it returns (inference), how it
//! is computed (evaluation), how its rows depend on each other, how close to PyTorch it must be and where its golden
//! samples come from. Names, defaults, aliasing, the in-place form, the support table of `highroad ops`, the golden
//! generator and the generic tests all read these constants; there is no second list.

use std::collections::HashMap;
use std::sync::LazyLock;

use highroad_tensor::{DType, Tensor};
use smallvec::{SmallVec, smallvec};

pub(crate) use self::call::check_size;
pub use self::call::{Call, Ints, Limits, OpError, Operand, TensorOrScalar, Value};
pub use self::schema::{Access, Arg, ArgType, Base, Schema, SchemaError};
use crate::ops;
use crate::rows::RowRule;

mod call;
mod schema;

/// Element type and sizes of one tensor that an operator is going to return.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost dimension first.
    pub shape: highroad_tensor::Shape,
}

impl Meta {
    /// A tensor of `dtype` and `shape`.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.into() }
    }
}

/// The tensors that an operator returns, in order, lists flattened; symbols (`sym_size`) are no tensors.
pub type Metas = SmallVec<[Meta; 1]>;
/// What an operator returns.
pub type Outputs = SmallVec<[Value; 1]>;

/// Dtype and shape of every tensor that the call will return, or why the call is wrong.
pub type Infer = fn(&Call<'_>) -> Result<Metas, OpError>;
/// Computes the call; the second argument is what inference said.
pub type Eval = fn(&Call<'_>, &[Meta]) -> Result<Outputs, OpError>;
/// Turns constant arguments into a form that evaluation likes better (a packed weight); run once, at load. `None`
/// when this call has nothing to prepare.
pub type Prepare = fn(&Call<'_>) -> Option<Prepared>;
/// Makes the views that an operator returns.
#[derive(Clone, Copy)]
pub enum View {
    /// One.
    One(fn(&Call<'_>) -> Result<Tensor, OpError>),
    /// A list.
    Many(fn(&Call<'_>) -> Result<Vec<Tensor>, OpError>),
}

impl View {
    fn make(self, call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
        match self {
            Self::One(make) => Ok(vec![make(call)?]),
            Self::Many(make) => make(call),
        }
    }
}

/// What [`Prepare`] made; evaluation finds it through [`Call::prepared`].
pub type Prepared = Box<dyn std::any::Any + Send + Sync>;

/// Everything about one operator, as a constant in one of the tables of [`crate::ops`].
pub struct Declaration {
    /// ATen's schema, as `torch.ops.aten.add.Tensor._schema` prints it.
    pub schema: &'static str,
    /// Whether the operator also exists as `name_`, writing its result into `self`.
    pub form: Form,
    /// Dtype and shape of the results.
    pub infer: Infer,
    /// The computation.
    pub eval: Eval,
    /// For an operator that costs nothing but the view it returns: the view. Inference and evaluation follow from it.
    pub view: Option<View>,
    /// One-time work on constant arguments.
    pub prepare: Option<Prepare>,
    /// How rows of the results depend on rows of the arguments.
    pub rows: RowRule,
    /// Dtypes that its golden samples cover and `highroad ops` promises.
    pub dtypes: &'static [DType],
    /// How close to PyTorch the results are.
    pub tolerance: Tolerance,
    /// Where golden samples come from.
    pub samples: Samples,
}

impl Declaration {
    /// An operator without an in-place form, exact for every dtype, whose rows count as mixed, with `OpInfo` samples
    /// under its own name; the methods below say what is different.
    pub const fn new(schema: &'static str, infer: Infer, eval: Eval) -> Self {
        Self {
            schema,
            form: Form::Functional,
            infer,
            eval,
            view: None,
            prepare: None,
            rows: |_| Err("may mix rows".to_owned()),
            dtypes: ALL,
            tolerance: Tolerance::EXACT,
            samples: Samples::OpInfo,
        }
    }

    /// An operator that only returns views of its arguments.
    pub const fn of_view(schema: &'static str, view: View) -> Self {
        Self { view: Some(view), ..Self::new(schema, infer_view, eval_view) }
    }

    /// Computes a call: inference, the limits, evaluation.
    pub fn run(&self, call: &Call<'_>) -> Result<Outputs, OpError> {
        if let Some(View::One(make)) = self.view {
            return Ok(smallvec![Value::Tensor(make(call)?)]);
        }
        let metas = (self.infer)(call)?;
        metas.iter().try_for_each(|meta| check_size(meta, call.limits()))?;
        (self.eval)(call, &metas)
    }

    /// Also exists as `name_`.
    pub const fn in_place(self) -> Self {
        Self { form: Form::AlsoInPlace, ..self }
    }

    /// Also exists as the in-place form called `name`.
    pub const fn in_place_as(self, name: &'static str) -> Self {
        Self { form: Form::AlsoInPlaceAs(name), ..self }
    }

    /// Exists only as `name`, unlike the rest of its table.
    pub const fn functional_only(self) -> Self {
        Self { form: Form::Functional, ..self }
    }

    /// Prepares constants once.
    pub const fn prepare(self, prepare: Prepare) -> Self {
        Self { prepare: Some(prepare), ..self }
    }

    /// How rows depend on each other.
    pub const fn rows(self, rows: RowRule) -> Self {
        Self { rows, ..self }
    }

    /// Dtypes promised.
    pub const fn dtypes(self, dtypes: &'static [DType]) -> Self {
        Self { dtypes, ..self }
    }

    /// How close to PyTorch.
    pub const fn within(self, tolerance: Tolerance) -> Self {
        Self { tolerance, ..self }
    }

    /// Golden samples from `conformance/handwritten.py`.
    pub const fn handwritten(self) -> Self {
        Self { samples: Samples::Handwritten, ..self }
    }
}

fn view_of(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    call.op().declaration().view.expect("only `of_view` installs these functions").make(call)
}

fn infer_view(call: &Call<'_>) -> Result<Metas, OpError> {
    Ok(view_of(call)?.iter().map(|tensor| Meta::new(tensor.dtype(), tensor.shape())).collect())
}

fn eval_view(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    Ok(view_of(call)?.into_iter().map(Value::Tensor).collect())
}

/// Every dtype that programs of f32 models use.
pub const ALL: &[DType] = &[DType::F32, DType::I64, DType::I32, DType::Bool];
/// Numbers without booleans.
pub const NUMBERS: &[DType] = &[DType::F32, DType::I64, DType::I32];
/// Integers and booleans.
pub const INTEGERS: &[DType] = &[DType::I64, DType::I32, DType::Bool];
/// Floats.
pub const FLOATS: &[DType] = &[DType::F32];

/// Which forms of an operator exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Only `name`.
    Functional,
    /// `name` and `name_`; the pass `functionalise` replaces the second by the first.
    AlsoInPlace,
    /// `name` and the in-place form called this, where ATen names its overload otherwise.
    AlsoInPlaceAs(&'static str),
}

/// Largest difference from PyTorch's result: `|ours - theirs| <= absolute + relative * |theirs|` for every element.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

impl Tolerance {
    /// The same bits; for everything that moves, compares or counts, and for single correctly rounded operations.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };
    /// A few units in the last place of f32: one function evaluation per element.
    pub const CLOSE: Self = Self { absolute: 1e-6, relative: 2e-6 };
    /// Sums of many terms in another order than PyTorch's.
    pub const SUM: Self = Self { absolute: 1e-5, relative: 1e-5 };
}

/// Where golden samples of an operator come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// The samples of PyTorch's own test suite for the operator: its `OpInfo` entries, wherever they reach it.
    OpInfo,
    /// `conformance/handwritten.py`, under the operator's name: no `OpInfo` reaches the overload.
    Handwritten,
}

/// An operator as the rest of the runtime sees it: its declaration and the parsed schema.
pub struct OpDef {
    schema: Schema,
    declaration: &'static Declaration,
    family: &'static str,
    functional: Option<String>,
}

impl OpDef {
    /// The overload as nodes name it: `aten.add.Tensor`, `_operator.mul`.
    pub fn name(&self) -> &str {
        &self.schema.name
    }

    /// Argument names, types, defaults and aliasing.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The declaration behind it; an in-place form shares that of its functional form.
    pub fn declaration(&self) -> &'static Declaration {
        self.declaration
    }

    /// The table that declares it: `unary`, `reduce`, `view`, …
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// For an in-place form (`aten.relu_.default`), the operator that computes the same without writing
    /// (`aten.relu.default`), with the same arguments.
    pub fn functional(&self) -> Option<&'static OpDef> {
        self.functional.as_deref().and_then(lookup)
    }
}

/// The operator that nodes call `name`; `None` if it is not supported.
pub fn lookup(name: &str) -> Option<&'static OpDef> {
    BY_NAME.get(name).copied()
}

/// Every operator, sorted by name.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    OPS.iter()
}

static OPS: LazyLock<Vec<OpDef>> = LazyLock::new(|| {
    let declared = ops::TABLES.iter().flat_map(|(family, table)| table.iter().map(move |row| (*family, row)));
    let mut ops: Vec<OpDef> = declared.flat_map(|(family, declaration)| forms(family, declaration)).collect();
    ops.sort_by(|a, b| a.name().cmp(b.name()));
    ops
});

static BY_NAME: LazyLock<HashMap<&'static str, &'static OpDef>> =
    LazyLock::new(|| OPS.iter().map(|op| (op.name(), op)).collect());

fn forms(family: &'static str, declaration: &'static Declaration) -> Vec<OpDef> {
    let schema: Schema = declaration.schema.parse().expect("a test parses every declared schema");
    let name = schema.name.clone();
    let in_place_schema = match declaration.form {
        Form::Functional => None,
        Form::AlsoInPlace => Some(schema.in_place()),
        Form::AlsoInPlaceAs(name) => Some(Schema { name: name.to_owned(), ..schema.in_place() }),
    };
    let in_place = in_place_schema.map(|schema| OpDef { schema, declaration, family, functional: Some(name) });
    let functional = OpDef { schema, declaration, family, functional: None };
    std::iter::once(functional).chain(in_place).collect()
}
