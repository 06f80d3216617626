//! One call of an operator: its arguments by name, the context it runs in, and what can be wrong with it.

use highroad_tensor::{DType, Scalar, Shape, Tensor, TensorError};
use smallvec::SmallVec;

use super::{Meta, OpDef, Prepared};

/// What flows between operators.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// Nothing: an absent optional, or a slot whose value was freed.
    #[default]
    None,
    /// A tensor.
    Tensor(Tensor),
    /// A size or other integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A condition.
    Bool(bool),
    /// A string constant.
    Str(Box<str>),
    /// An element type.
    DType(DType),
}

/// Where an argument of a planned call comes from.
#[derive(Clone, Debug)]
pub enum Operand {
    /// The same on every run.
    Const(Value),
    /// The value in this slot when the call runs.
    Slot(usize),
    /// Several, mixed.
    List(Vec<Operand>),
}

/// Bounds on what a program may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest size of one tensor in bytes.
    pub tensor_bytes: usize,
}

impl Default for Limits {
    /// 16 GiB a tensor: beyond the activations of any model that answers on a CPU, below what a wrong size asks for.
    fn default() -> Self {
        Self { tensor_bytes: 16 << 30 }
    }
}

/// What is wrong with a call: facts about its arguments. The node, operator and shapes are added by the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum OpError {
    #[error("argument `{argument}` is {found} where {expected} is needed")]
    Argument { argument: &'static str, expected: &'static str, found: String },
    #[error("`{argument}` is {dtype}, which this operator does not take")]
    DType { argument: &'static str, dtype: DType },
    #[error("`{argument}` has shape {found:?} where {expected} is needed")]
    Shape { argument: &'static str, found: Shape, expected: String },
    #[error("shapes {left:?} and {right:?} do not broadcast")]
    Broadcast { left: Shape, right: Shape },
    #[error("dimension {dim} does not exist in a tensor of {ndim} dimensions")]
    Dim { dim: i64, ndim: usize },
    #[error("index {index} is outside of the {size} entries of dimension {dim}")]
    Index { index: i64, dim: usize, size: usize },
    #[error("a tensor of shape {from:?} cannot be viewed as {to:?}")]
    View { from: Shape, to: Vec<i64> },
    #[error("size {0} is negative or does not fit in memory")]
    Size(i64),
    #[error("a result of shape {shape:?} and dtype {dtype} is larger than the limit of {limit} bytes")]
    TooLarge { shape: Shape, dtype: DType, limit: usize },
    #[error("division of an integer by zero")]
    DivisionByZero,
    #[error("an integer does not fit in 64 bits")]
    Overflow,
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A list of sizes, strides or dimensions.
pub type Ints = SmallVec<[i64; 6]>;

/// One call of an operator.
///
/// Arguments are read by their schema names. Asking for the wrong type is an [`OpError::Argument`], because an archive
/// can hold anything.
pub struct Call<'a> {
    op: &'static OpDef,
    operands: &'a [Operand],
    slots: &'a [Value],
    prepared: Option<&'a Prepared>,
    limits: Limits,
}

impl<'a> Call<'a> {
    /// A call of `op`; `operands` are in schema order and complete, slots refer to `slots`.
    pub fn new(op: &'static OpDef, operands: &'a [Operand], slots: &'a [Value], limits: Limits) -> Self {
        Self { op, operands, slots, prepared: None, limits }
    }

    /// The same call with what [`super::Declaration::prepare`] made of its constants.
    pub fn with_prepared(self, prepared: Option<&'a Prepared>) -> Self {
        Self { prepared, ..self }
    }

    /// The operator called.
    pub fn op(&self) -> &'static OpDef {
        self.op
    }

    /// Bounds on what the call may allocate.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What preparation made, if it made a `T`.
    pub fn prepared<T: 'static>(&self) -> Option<&'a T> {
        self.prepared?.downcast_ref()
    }

    /// Whether the argument is the same on every run, so that preparation may read it.
    pub fn is_constant(&self, name: &str) -> bool {
        fn is_constant(operand: &Operand) -> bool {
            match operand {
                Operand::Const(_) => true,
                Operand::Slot(_) => false,
                Operand::List(items) => items.iter().all(is_constant),
            }
        }
        self.operand(name).is_none_or(is_constant)
    }

    /// Whether the argument is `None`.
    pub fn is_absent(&self, name: &'static str) -> bool {
        matches!(self.value(name), Ok(Value::None))
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &'static str) -> Result<&'a Tensor, OpError> {
        match self.value(name)? {
            Value::Tensor(tensor) => Ok(tensor),
            other => Err(wrong(name, "a tensor", other)),
        }
    }

    /// The tensor `name`, `None` if absent.
    pub fn optional_tensor(&self, name: &'static str) -> Result<Option<&'a Tensor>, OpError> {
        match self.value(name)? {
            Value::Tensor(tensor) => Ok(Some(tensor)),
            Value::None => Ok(None),
            other => Err(wrong(name, "a tensor or none", other)),
        }
    }

    /// The tensor or, where a `Tensor` argument was given a Python number, the number.
    pub fn tensor_or_scalar(&self, name: &'static str) -> Result<TensorOrScalar<'a>, OpError> {
        match self.value(name)? {
            Value::Tensor(tensor) => Ok(TensorOrScalar::Tensor(tensor)),
            other => to_scalar(other).map(TensorOrScalar::Scalar).ok_or_else(|| wrong(name, "a tensor", other)),
        }
    }

    /// The tensors of the list `name`; an element that is absent is `None`.
    pub fn optional_tensors(&self, name: &'static str) -> Result<SmallVec<[Option<&'a Tensor>; 4]>, OpError> {
        let element = |value: &'a Value| match value {
            Value::Tensor(tensor) => Ok(Some(tensor)),
            Value::None => Ok(None),
            other => Err(wrong(name, "a list of tensors", other)),
        };
        match self.operand(name) {
            Some(Operand::List(items)) => items.iter().map(|item| element(self.resolve(item)?)).collect(),
            _ => Err(wrong(name, "a list of tensors", self.value(name)?)),
        }
    }

    /// The tensors of the list `name`, all present.
    pub fn tensors(&self, name: &'static str) -> Result<SmallVec<[&'a Tensor; 4]>, OpError> {
        let absent = || wrong(name, "a list of tensors", &Value::None);
        self.optional_tensors(name)?.into_iter().map(|tensor| tensor.ok_or_else(absent)).collect()
    }

    /// The integer `name`.
    pub fn int(&self, name: &'static str) -> Result<i64, OpError> {
        self.optional_int(name)?.ok_or_else(|| wrong(name, "an integer", &Value::None))
    }

    /// The integer `name`, `None` if absent.
    pub fn optional_int(&self, name: &'static str) -> Result<Option<i64>, OpError> {
        match self.value(name)? {
            Value::None => Ok(None),
            value => to_int(value).map(Some).ok_or_else(|| wrong(name, "an integer", value)),
        }
    }

    /// The integers `name`.
    pub fn ints(&self, name: &'static str) -> Result<Ints, OpError> {
        self.optional_ints(name)?.ok_or_else(|| wrong(name, "a list of integers", &Value::None))
    }

    /// The integers `name`, `None` if absent; one integer is a list of one.
    pub fn optional_ints(&self, name: &'static str) -> Result<Option<Ints>, OpError> {
        let int = |value: &Value| to_int(value).ok_or_else(|| wrong(name, "a list of integers", value));
        match self.operand(name) {
            Some(Operand::List(items)) => {
                items.iter().map(|item| int(self.resolve(item)?)).collect::<Result<_, _>>().map(Some)
            }
            _ => match self.value(name)? {
                Value::None => Ok(None),
                value => int(value).map(|int| Some(SmallVec::from_elem(int, 1))),
            },
        }
    }

    /// The float `name`; an integer counts as one.
    pub fn float(&self, name: &'static str) -> Result<f64, OpError> {
        self.optional_float(name)?.ok_or_else(|| wrong(name, "a float", &Value::None))
    }

    /// The float `name`, `None` if absent.
    pub fn optional_float(&self, name: &'static str) -> Result<Option<f64>, OpError> {
        Ok(self.optional_scalar(name)?.map(Scalar::to::<f64>))
    }

    /// The boolean `name`.
    pub fn bool(&self, name: &'static str) -> Result<bool, OpError> {
        match self.value(name)? {
            Value::Bool(bool) => Ok(*bool),
            Value::Int(int) => Ok(*int != 0),
            other => Err(wrong(name, "a boolean", other)),
        }
    }

    /// The number `name`.
    pub fn scalar(&self, name: &'static str) -> Result<Scalar, OpError> {
        self.optional_scalar(name)?.ok_or_else(|| wrong(name, "a number", &Value::None))
    }

    /// The number `name`, `None` if absent.
    pub fn optional_scalar(&self, name: &'static str) -> Result<Option<Scalar>, OpError> {
        match self.value(name)? {
            Value::None => Ok(None),
            value => to_scalar(value).map(Some).ok_or_else(|| wrong(name, "a number", value)),
        }
    }

    /// The element type `name`, `None` if absent.
    pub fn optional_dtype(&self, name: &'static str) -> Result<Option<DType>, OpError> {
        match self.value(name)? {
            Value::None => Ok(None),
            Value::DType(dtype) => Ok(Some(*dtype)),
            other => Err(wrong(name, "an element type", other)),
        }
    }

    /// The string `name`, empty if absent.
    pub fn str(&self, name: &'static str) -> Result<&'a str, OpError> {
        match self.value(name)? {
            Value::None => Ok(""),
            Value::Str(text) => Ok(text),
            other => Err(wrong(name, "a string", other)),
        }
    }

    fn operand(&self, name: &str) -> Option<&'a Operand> {
        self.operands.get(self.op.schema().position(name)?)
    }

    fn value(&self, name: &'static str) -> Result<&'a Value, OpError> {
        match self.operand(name) {
            Some(operand) => self.resolve(operand),
            None => Ok(&Value::None),
        }
    }

    fn resolve(&self, operand: &'a Operand) -> Result<&'a Value, OpError> {
        const LIST: OpError = OpError::Unsupported("a list stands where one value is needed");
        match operand {
            Operand::Const(value) => Ok(value),
            Operand::Slot(slot) => self.slots.get(*slot).ok_or(OpError::Unsupported("a slot does not exist")),
            Operand::List(_) => Err(LIST),
        }
    }
}

/// An argument declared `Tensor` that Python may have filled with a number.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum TensorOrScalar<'a> {
    Tensor(&'a Tensor),
    Scalar(Scalar),
}

/// Errors if a tensor as `meta` says is larger than the limits allow.
pub(crate) fn check_size(meta: &Meta, limits: Limits) -> Result<(), OpError> {
    let numel = meta.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let bytes = numel.and_then(|n| n.checked_mul(meta.dtype.size_bytes()));
    match bytes {
        Some(bytes) if bytes <= limits.tensor_bytes => Ok(()),
        _ => Err(OpError::TooLarge { shape: meta.shape.clone(), dtype: meta.dtype, limit: limits.tensor_bytes }),
    }
}

fn to_int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(int) => Some(*int),
        Value::Bool(bool) => Some(i64::from(*bool)),
        _ => None,
    }
}

fn to_scalar(value: &Value) -> Option<Scalar> {
    match value {
        Value::Int(int) => Some(Scalar::Int(*int)),
        Value::Float(float) => Some(Scalar::Float(*float)),
        Value::Bool(bool) => Some(Scalar::Bool(*bool)),
        _ => None,
    }
}

fn wrong(argument: &'static str, expected: &'static str, found: &Value) -> OpError {
    OpError::Argument { argument, expected, found: kind(found) }
}

fn kind(value: &Value) -> String {
    match value {
        Value::None => "absent".to_owned(),
        Value::Tensor(tensor) => format!("a tensor {tensor:?}"),
        Value::Int(int) => format!("the integer {int}"),
        Value::Float(float) => format!("the float {float}"),
        Value::Bool(bool) => format!("`{bool}`"),
        Value::Str(text) => format!("the string `{text}`"),
        Value::DType(dtype) => format!("the element type {dtype}"),
    }
}
