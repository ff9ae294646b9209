//! How one declaration of a setting becomes its field, its reader and its documentation.

/// Declares sections and their settings: `name: type = default, limit;` below its doc comment.
///
/// Makes a struct for each section, `Settings` with all of them, their defaults, `Settings::read` for the
/// loader and `Settings::entries` for whatever shows settings to people.
macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        [$section:ident] $Section:ident {
            $( $(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr, $limit:expr; )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $Section {
                $(
                    $(#[doc = $doc])+
                    #[doc = ""]
                    #[doc = concat!("Default `", stringify!($default), "`, limit `", stringify!($limit), "`.")]
                    pub $name: $kind,
                )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $( $name: $default, )+ }
                }
            }

            impl $Section {
                fn read(reader: &mut $crate::config::load::Reader<'_>) -> Self {
                    Self { $( $name: reader.take::<$kind>(
                        concat!(stringify!($section), ".", stringify!($name)), $default, &$limit,
                    ), )+ }
                }

                fn entries(&self, entries: &mut Vec<$crate::config::show::Entry>) {
                    $( entries.push($crate::config::show::Entry::of::<$kind>(
                        stringify!($section), stringify!($name), &[$($doc),+], &$default, &self.$name, &$limit,
                    )); )+
                }
            }
        )+

        /// Every setting of every service; all values are within their limits.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Settings {
            $( $(#[doc = $section_doc])+ pub $section: $Section, )+
        }

        impl Settings {
            /// Paths of all settings, as `mqtt.listen`, in the order of their declaration.
            pub const PATHS: &'static [&'static str] =
                &[$($( concat!(stringify!($section), ".", stringify!($name)), )+)+];

            const SECTIONS: &'static [(&'static str, &'static [&'static str])] =
                &[$( (stringify!($section), &[$($section_doc),+]), )+];

            fn read(reader: &mut $crate::config::load::Reader<'_>) -> Self {
                Self { $( $section: $Section::read(reader), )+ }
            }

            fn entries(&self) -> Vec<$crate::config::show::Entry> {
                let mut entries = Vec::with_capacity(Self::PATHS.len());
                $( self.$section.entries(&mut entries); )+
                entries
            }
        }
    };
}
pub(super) use settings;
