//! What `read_through` and `write_behind` have in common as calls of a script: a prefix, a function, keyword arguments, and a
//! registration that calls the function in the background.

use std::sync::Arc;

use pyo3::{prelude::*, types::PyDict};

use super::{
    Runtime,
    callback::{Callback, Code},
    keywords::{self, Keywords},
    registering::{self, NewRegistration},
    runtime,
};
use crate::engine::{
    language::Function,
    plan::{Plan, Step},
    registration::{Limits, Mode, Trigger},
    scope::Scope,
};

/// One such call, its first arguments checked.
pub struct Half<'a, 'py> {
    pub runtime: &'static Runtime,
    scope: Scope,
    pub given: Keywords<'a, 'py>,
    function: Code,
}

impl<'a, 'py> Half<'a, 'py> {
    /// `name`: of the call; then the argument that is its function, that, and what it gets. What the call says of keys comes back beside it.
    ///
    /// # Errors
    /// `gears.error` that names the argument and what was expected; nothing can be registered here.
    pub fn new(
        name: &'static str,
        known: &[&str],
        prefix: &Bound<'py, PyAny>,
        (argument, function, gets): (&str, &Bound<'py, PyAny>, &str),
        options: &'a Bound<'py, PyDict>,
    ) -> PyResult<(Self, String)> {
        let runtime = runtime()?;
        let scope = registering::registering_scope()?;
        let given = Keywords::new(name, options, known)?;
        let prefix = keywords::prefix(name, prefix)?;
        if !function.is_callable() {
            return Err(keywords::expected(name, argument, "a function", function));
        }
        keywords::takes(name, argument, function, &[gets])?;
        let half = Self {
            runtime,
            scope,
            given,
            function: Code::new(function.clone()),
        };
        Ok((half, prefix))
    }

    /// Registers it. `more`: another function, which the trigger calls by itself.
    ///
    /// # Errors
    /// `gears.error`: a wrong `desc`, `user`, `onRegistered` or `max_memory`, or what [`registering::enlist`] says.
    pub fn enlist(self, py: Python<'_>, more: Option<Code>, trigger: Box<dyn Trigger>) -> PyResult<String> {
        let desc = self.given.text("desc")?;
        if let Some(function) = self.given.get("onRegistered")?.filter(PyAnyMethods::is_callable) {
            keywords::takes(self.given.call(), "onRegistered", &function, &[])?;
        }
        let on_registered = self.given.function("onRegistered")?;
        let user = self.given.text("user")?;
        let max_memory = self.given.max_memory()?;
        let callback = |code| Arc::new(Callback::new(py, code));
        let callbacks: Vec<_> = std::iter::once(self.function).chain(more).map(callback).collect();
        let functions = callbacks
            .iter()
            .map(|callback| Arc::clone(callback) as Arc<dyn Function>)
            .collect();
        let new = NewRegistration {
            desc,
            mode: Mode::AsyncLocal,
            in_order: false,
            plan: Plan {
                steps: vec![Step::Map(0)],
                functions,
            },
            callbacks,
            trigger,
            on_registered: on_registered.map(callback),
            doubts: Vec::new(),
            user,
            limits: Limits {
                max_memory,
                ..Limits::default()
            },
        };
        registering::enlist(self.runtime, &self.scope, new)
    }
}

/// `noteDecorator(call, prefix, applied)`: a script makes one of these decorators, or puts it in front of a function. One that it puts in
/// front of none is an error at its end.
///
/// # Errors
/// `gears.error`: a wrong prefix, e.g. the function itself where the brackets were forgotten.
#[pyfunction(name = "noteDecorator")]
pub fn note_decorator(call: &str, prefix: &Bound<'_, PyAny>, applied: bool) -> PyResult<()> {
    let prefix = keywords::prefix(call, prefix)?;
    let text = format!("{call}('{prefix}', ...)");
    Scope::note_of_script(|script| {
        if !applied {
            script.unapplied.push(text);
        } else if let Some(place) = script.unapplied.iter().position(|made| *made == text) {
            script.unapplied.remove(place);
        }
    });
    Ok(())
}
