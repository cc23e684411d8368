//! `--input`: what to pass to a model for a check.

/// One `--input`.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Random values.
    Tensor {
        /// `c10::ScalarType`
        dtype: i32,
        /// Sizes.
        shape: Vec<i64>,
        /// Integers are below this; 0 if nothing was said.
        limit: i64,
    },
    /// A number.
    Int(i64),
    /// A number.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `none`.
    None,
}

/// Names and numbers (`c10::ScalarType`) of the dtypes that a user can ask for.
const DTYPES: [(&str, i32); 10] = [
    ("u8", 0),
    ("i8", 1),
    ("i16", 2),
    ("i32", 3),
    ("i64", 4),
    ("f16", 5),
    ("f32", 6),
    ("f64", 7),
    ("bool", 11),
    ("bf16", 15),
];

/// More elements than this are a slip of the finger.
const MOST_ELEMENTS: i64 = 1 << 34;

impl Given {
    /// Reads one.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "none" => return Ok(Self::None),
            "true" => return Ok(Self::Bool(true)),
            "false" => return Ok(Self::Bool(false)),
            _ => {}
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Int(number));
        }
        // `inf` and `nan` are floats too.
        if let Ok(number) = text.parse() {
            return Ok(Self::Float(number));
        }
        const FORM: &str = "an input such as f32[8,784], i64[8]:100, 3, 0.5, true or none";
        let (name, rest) = text.split_once('[').ok_or(FORM)?;
        let (sizes, rest) = rest.split_once(']').ok_or(FORM)?;
        let dtype = DTYPES.iter().find(|(known, _)| *known == name);
        let (name, dtype) = dtype.ok_or("a dtype of f32 f64 f16 bf16 i64 i32 i16 i8 u8 bool")?;
        let mut shape = vec![];
        for size in sizes.split(',').map(str::trim) {
            if size.is_empty() && !sizes.contains(',') {
                break; // f32[] is a tensor without dimensions.
            }
            shape.push(size.parse().ok().filter(|size| *size >= 0).ok_or(FORM)?);
        }
        let elements = shape.iter().try_fold(1i64, |product, size| product.checked_mul(*size));
        if elements.is_none_or(|count| count > MOST_ELEMENTS) {
            return Err("an input that fits in memory");
        }
        let limit = match rest.strip_prefix(':') {
            None if rest.is_empty() => 0,
            Some(limit) if name.starts_with(['i', 'u']) => {
                limit.parse().ok().filter(|limit| *limit > 0).ok_or(FORM)?
            }
            _ => return Err("a limit (:100) only behind a tensor of integers"),
        };
        Ok(Self::Tensor { dtype: *dtype, shape, limit })
    }
}

/// `f32[8, 784]`, for messages.
pub fn tensor_text(dtype: i32, shape: &[i64]) -> String {
    let name = DTYPES.iter().find(|(_, number)| *number == dtype).map_or("?", |(name, _)| name);
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("{name}[{}]", sizes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: i32, shape: &[i64], limit: i64) -> Result<Given, &'static str> {
        Ok(Given::Tensor { dtype, shape: shape.to_vec(), limit })
    }

    #[test]
    fn what_can_be_said() {
        assert_eq!(Given::parse("f32[8,784]"), tensor(6, &[8, 784], 0));
        assert_eq!(Given::parse("bf16[8, 0]"), tensor(15, &[8, 0], 0));
        assert_eq!(Given::parse("i64[8]:100"), tensor(4, &[8], 100));
        assert_eq!(Given::parse("bool[2]"), tensor(11, &[2], 0));
        assert_eq!(Given::parse("f64[]"), tensor(7, &[], 0));
        assert_eq!(Given::parse("-3"), Ok(Given::Int(-3)));
        assert_eq!(Given::parse("0.5"), Ok(Given::Float(0.5)));
        assert_eq!(Given::parse("true"), Ok(Given::Bool(true)));
        assert_eq!(Given::parse("none"), Ok(Given::None));
    }

    #[test]
    fn what_cannot() {
        for text in [
            "",
            "f32",
            "f32[",
            "f32[8",
            "f32]8[",
            "f31[8]",
            "f32[8,]",
            "f32[,8]",
            "f32[-1]",
            "f32[x]",
            "i64[8]:",
            "i64[8]:0",
            "i64[8]:-1",
            "i64[8]100",
            "f32[8]:100",
            "bool[8]:2",
            "f32[9999999999,9999999999]",
            "f32[99999999999]",
            "True",
            "[8]",
        ] {
            assert!(Given::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_printed_as_they_are_read() {
        assert_eq!(tensor_text(6, &[8, 784]), "f32[8, 784]");
        assert_eq!(tensor_text(4, &[]), "i64[]");
    }
}
