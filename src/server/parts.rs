//! What a reply holds, for those who read it: the same questions have one answer everywhere, in both protocols.

use super::reply::Reply;

impl Reply {
    /// A text of any kind that is no error.
    pub fn as_text(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(text) | Self::Status(text) | Self::Verbatim { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The text of an error, with its code word.
    pub fn as_error(&self) -> Option<&[u8]> {
        match self {
            Self::Error(text) => Some(text),
            _ => None,
        }
    }

    /// The code word of an error, such as `NOGROUP`.
    pub fn error_code(&self) -> Option<&[u8]> {
        self.as_error()?.split(|&byte| byte == b' ').next()
    }

    /// The elements of an array or a set; none of anything else.
    pub fn items(&self) -> &[Self] {
        match self {
            Self::Array(items) | Self::Set(items) => items,
            _ => &[],
        }
    }

    /// The same, taken out.
    pub fn into_items(self) -> Vec<Self> {
        match self {
            Self::Array(items) | Self::Set(items) => items,
            _ => Vec::new(),
        }
    }

    /// Names and values: of a map, or of an array that has them in turn.
    pub fn pairs(&self) -> Vec<(&Self, &Self)> {
        if let Self::Map(pairs) = self {
            return pairs.iter().map(|(name, value)| (name, value)).collect();
        }
        let (pairs, _) = self.items().as_chunks::<2>();
        pairs.iter().map(|[name, value]| (name, value)).collect()
    }

    /// The value of a name in [`Reply::pairs`].
    pub fn field(&self, name: &[u8]) -> Option<&Self> {
        let mut pairs = self.pairs().into_iter();
        let found = pairs.find(|(known, _)| known.as_text() == Some(name));
        found.map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names() {
        let mut words: Vec<_> = ["name", "pending", "pending"].map(Reply::bulk).into();
        words.extend([
            Reply::Int(3),
            Reply::bulk("lag"),
            Reply::Null,
            Reply::bulk("alone"),
        ]);
        let list = Reply::Array(words);
        assert_eq!(
            list.field(b"name").and_then(Reply::as_text),
            Some(&b"pending"[..])
        );
        assert_eq!(list.field(b"pending").and_then(Reply::as_int), Some(3));
        assert_eq!(
            (list.field(b"lag"), list.field(b"alone")),
            (Some(&Reply::Null), None)
        );
        let map = Reply::Map(vec![(Reply::status("lag"), Reply::Int(1))]);
        assert_eq!(map.field(b"lag"), Some(&Reply::Int(1)));
    }

    #[test]
    fn errors_have_a_code_and_no_text() {
        let error = Reply::error("NOGROUP No such key");
        assert_eq!(error.error_code(), Some(&b"NOGROUP"[..]));
        assert_eq!((error.as_text(), error.items().len()), (None, 0));
        assert_eq!(Reply::bulk("NOGROUP").error_code(), None);
    }
}
