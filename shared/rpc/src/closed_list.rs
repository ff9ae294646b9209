//! How is a closed list declared? Once: each variant beside its name in metrics and logs, so that tables over the list
//! cannot miss one.

/// Declares an enum without fields: `ALL` lists its variants in order, `as_str` names one, and a variant's place in a
/// table over `ALL` is `variant as usize`.
#[macro_export]
macro_rules! closed_list {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every one, in order.
            pub const ALL: [$name; [$($text),+].len()] = [$($name::$variant),+];

            /// The name in metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }
    };
}
