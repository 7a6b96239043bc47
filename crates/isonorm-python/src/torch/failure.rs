//! Why an operator refused a call: the text of Python's `RuntimeError`.

/// The text.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }

    /// A torch that lacks what is needed.
    pub(super) fn load(error: libloading::Error) -> Failure {
        Failure(format!("this torch has no C interface that isonorm can use (2.10 or later does): {error}"))
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl From<isonorm_cuda::Error> for Failure {
    fn from(error: isonorm_cuda::Error) -> Self {
        Failure(error.to_string())
    }
}

impl From<isonorm::Error> for Failure {
    fn from(error: isonorm::Error) -> Self {
        Failure(error.to_string())
    }
}
