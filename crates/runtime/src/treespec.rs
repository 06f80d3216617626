//! The shape of a program's arguments and results: torch's pytrees, as far as they are data.
//!
//! The archive holds them as JSON text. A binding flattens its caller's arguments with [`TreeSpec::children`] and
//! builds results back up; this module knows no Python.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::LoadError;

/// One node of a pytree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TreeSpec {
    /// A tensor, number, string or `None` argument.
    Leaf,
    /// Python's `None` as a node without children.
    None,
    /// A tuple.
    Tuple(Vec<TreeSpec>),
    /// A list.
    List(Vec<TreeSpec>),
    /// A dictionary with string keys, in the order of the leaves.
    Dict(Vec<(String, TreeSpec)>),
    /// A named tuple, dataclass or model output: named fields in the order of the leaves.
    Named {
        /// Python type, for example `transformers.modeling_outputs.BaseModelOutput`.
        type_name: String,
        /// Fields that are present.
        fields: Vec<(String, TreeSpec)>,
    },
}

impl TreeSpec {
    /// Reads torch's JSON form, version 1. `named_tuples` gives the fields of named tuple types.
    pub fn parse(text: &str, named_tuples: &BTreeMap<String, Vec<String>>) -> Result<Self, LoadError> {
        let malformed = |why: String| LoadError::Malformed(format!("the pytree of inputs or outputs {why}"));
        let (version, root): (u64, Json) = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if version != 1 {
            return Err(malformed(format!("has version {version} and only 1 is read")));
        }
        root.build(named_tuples).map_err(malformed)
    }

    /// How many leaves this node has, itself or below.
    pub fn n_leaves(&self) -> usize {
        match self {
            Self::Leaf => 1,
            Self::None => 0,
            _ => self.children().map(|(_, child)| child.n_leaves()).sum(),
        }
    }

    /// The nodes directly below in the order of the leaves, with their key where they have one.
    pub fn children(&self) -> impl Iterator<Item = (Option<&str>, &TreeSpec)> {
        let (list, named): (&[TreeSpec], &[(String, TreeSpec)]) = match self {
            Self::Leaf | Self::None => (&[], &[]),
            Self::Tuple(items) | Self::List(items) => (items, &[]),
            Self::Dict(fields) | Self::Named { fields, .. } => (&[], fields),
        };
        list.iter().map(|child| (None, child)).chain(named.iter().map(|(key, child)| (Some(key.as_str()), child)))
    }

    /// A name for every leaf, in order: the keys and positions on the way to it, as in `past.0.key`.
    pub fn leaf_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.name_leaves(&mut Vec::new(), &mut names);
        names
    }

    fn name_leaves(&self, path: &mut Vec<String>, names: &mut Vec<String>) {
        if *self == Self::Leaf {
            names.push(path.join("."));
        }
        for (position, (key, child)) in self.children().enumerate() {
            path.push(key.map_or_else(|| position.to_string(), str::to_owned));
            child.name_leaves(path, names);
            path.pop();
        }
    }
}

#[derive(Deserialize)]
struct Json {
    r#type: Option<String>,
    context: Option<serde_json::Value>,
    #[serde(default)]
    children_spec: Vec<Json>,
}

impl Json {
    // serde_json's limit on nesting bounds this recursion.
    fn build(self, named_tuples: &BTreeMap<String, Vec<String>>) -> Result<TreeSpec, String> {
        let Some(type_name) = self.r#type else { return Ok(TreeSpec::Leaf) };
        let context = self.context.unwrap_or_default();
        let children: Vec<TreeSpec> =
            self.children_spec.into_iter().map(|child| child.build(named_tuples)).collect::<Result<_, _>>()?;
        match type_name.as_str() {
            "builtins.tuple" => Ok(TreeSpec::Tuple(children)),
            "builtins.list" => Ok(TreeSpec::List(children)),
            "builtins.NoneType" => Ok(TreeSpec::None),
            "builtins.dict" | "collections.OrderedDict" | "collections.defaultdict" => {
                Ok(TreeSpec::Dict(pair(&type_name, keys(&type_name, &context)?, children)?))
            }
            // The context is the name of the type, as it is.
            "collections.namedtuple" => {
                let type_name = context.as_str().unwrap_or_default().to_owned();
                let fields = named_tuples.get(&type_name).ok_or_else(|| no_fields(&type_name))?.clone();
                Ok(TreeSpec::Named { fields: pair(&type_name, fields, children)?, type_name })
            }
            // Registered dataclasses and model outputs keep their field names.
            _ => Ok(TreeSpec::Named { fields: pair(&type_name, keys(&type_name, &context)?, children)?, type_name }),
        }
    }
}

/// Keys out of a context: JSON text of a list of names (dictionaries, model outputs), of a list of present and absent
/// names (dataclasses), or an object around such a list (defaultdict).
fn keys(type_name: &str, context: &serde_json::Value) -> Result<Vec<String>, String> {
    let parsed = context.as_str().and_then(|text| serde_json::from_str(text).ok());
    let context: serde_json::Value = parsed.unwrap_or_else(|| context.clone());
    let list = context.get("dict_context").unwrap_or(&context).as_array().ok_or_else(|| no_fields(type_name))?;
    let list = match list.as_slice() {
        [serde_json::Value::Array(present), serde_json::Value::Array(_)] => present,
        _ => list,
    };
    let name = |key: &serde_json::Value| key.as_str().map(str::to_owned);
    list.iter().map(name).collect::<Option<_>>().ok_or_else(|| format!("uses `{type_name}` with keys other than text"))
}

fn no_fields(type_name: &str) -> String {
    format!("uses `{type_name}`, which does not name its fields")
}

fn pair(type_name: &str, keys: Vec<String>, children: Vec<TreeSpec>) -> Result<Vec<(String, TreeSpec)>, String> {
    if keys.len() != children.len() {
        return Err(format!("gives `{type_name}` {} keys for {} children", keys.len(), children.len()));
    }
    Ok(keys.into_iter().zip(children).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TreeSpec, LoadError> {
        let fields = BTreeMap::from([("m.Pair".to_owned(), vec!["left".to_owned(), "right".to_owned()])]);
        TreeSpec::parse(text, &fields)
    }

    const LEAF: &str = r#"{"type": null, "context": null, "children_spec": []}"#;

    #[test]
    fn leaves_are_named_by_the_way_to_them() {
        let spec = parse(&format!(
            r#"[1, {{"type": "builtins.tuple", "context": "null", "children_spec": [
                {LEAF},
                {{"type": "builtins.dict", "context": "[\"a\", \"b\"]", "children_spec": [{LEAF}, {LEAF}]}},
                {{"type": "collections.namedtuple", "context": "m.Pair", "children_spec": [{LEAF}, {LEAF}]}},
                {{"type": "transformers.modeling_outputs.X", "context": "[\"logits\"]", "children_spec": [{LEAF}]}},
                {{"type": "m.Data", "context": "[[\"x\"], [\"absent\"]]", "children_spec": [{LEAF}]}}
            ]}}]"#
        ))
        .unwrap();
        let names = ["0", "1.a", "1.b", "2.left", "2.right", "3.logits", "4.x"];
        assert_eq!(spec.leaf_names(), names);
        assert_eq!(spec.n_leaves(), names.len());
    }

    #[test]
    fn a_tree_that_contradicts_itself_is_an_error() {
        let few = format!(r#"[1, {{"type": "builtins.dict", "context": "[]", "children_spec": [{LEAF}]}}]"#);
        let opaque = format!(r#"[1, {{"type": "m.Odd", "context": "7", "children_spec": [{LEAF}]}}]"#);
        let deep = format!("[1, {}", r#"{"type": "builtins.list", "children_spec": ["#.repeat(10_000));
        for text in [few.as_str(), &opaque, &deep, "[2, null]", "", "[1]"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
