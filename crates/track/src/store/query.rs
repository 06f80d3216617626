use std::fmt::{self, Write as _};

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{Any, Arguments as _, AssertSqlSafe, Encode, FromRow, Type};

/// A statement whose text depends on the request. Values never become text: they are bound.
///
/// sqlx's own builder writes `?` for `Any`, which PostgreSQL does not read; this one writes `$1`, `$2`, …
#[derive(Default)]
pub(super) struct QueryBuilder {
    text: String,
    arguments: AnyArguments,
}

impl QueryBuilder {
    pub fn new(head: &'static str) -> Self {
        Self { text: head.to_owned(), ..Self::default() }
    }

    /// Text of our own.
    pub fn push(&mut self, text: impl fmt::Display) -> &mut Self {
        write!(self.text, "{text}").expect("a String takes any text");
        self
    }

    /// A value from outside.
    pub fn push_bind<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, value: T) -> &mut Self {
        self.arguments.add(value).expect("every type in use has a form in Any");
        let n = self.arguments.len();
        self.push(format_args!("${n}"))
    }

    /// `$1, $2, …`
    pub fn push_binds<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, values: impl IntoIterator<Item = T>) -> &mut Self {
        for (n, value) in values.into_iter().enumerate() {
            self.push(if n == 0 { "" } else { ", " }).push_bind(value);
        }
        self
    }

    pub fn build(self) -> Query<'static, Any, AnyArguments> {
        sqlx::query_with(AssertSqlSafe(self.text), self.arguments)
    }

    pub fn build_query_as<T: for<'r> FromRow<'r, AnyRow>>(self) -> QueryAs<'static, Any, T, AnyArguments> {
        sqlx::query_as_with(AssertSqlSafe(self.text), self.arguments)
    }

    pub fn build_query_scalar<T>(self) -> QueryScalar<'static, Any, T, AnyArguments>
    where
        (T,): for<'r> FromRow<'r, AnyRow>,
    {
        sqlx::query_scalar_with(AssertSqlSafe(self.text), self.arguments)
    }
}
