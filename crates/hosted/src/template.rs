/// `template` with every `{name}` of `values` replaced, in one pass: what a value holds is never a placeholder itself, and
/// braces around anything else stay, as prompts are full of JSON.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        filled.push_str(&rest[..start]);
        rest = &rest[start..];
        let named = values.iter().find_map(|(name, value)| {
            let after = rest[1..].strip_prefix(name)?.strip_prefix('}')?;
            Some((*value, after))
        });
        match named {
            Some((value, after)) => {
                filled.push_str(value);
                rest = after;
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_never_a_placeholder_and_other_braces_stay() {
        let values = [("answer", "{input}"), ("input", "é{answer}")];
        assert_eq!(fill("{\"q\": \"{input}\"} {answer}{", &values), "{\"q\": \"é{answer}\"} {input}{");
        assert_eq!(fill("{inputs} {{input}}", &values), "{inputs} {é{answer}}");
    }
}
