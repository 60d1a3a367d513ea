//! Plain data: structures that are nothing but their bytes, read and written without trust in what they hold.

/// A value of fixed size that can be made of any bytes.
///
/// Integers are little-endian, as the only architecture of the contract is. Reading never fails for want of a valid value:
/// every bit pattern is one.
pub trait Plain: Sized {
    /// Size in bytes.
    const SIZE: usize;

    /// Reads the value from the start of `bytes`; `None` when they are fewer than [`Plain::SIZE`].
    fn read(bytes: &[u8]) -> Option<Self>;

    /// Writes the value to the start of `bytes`; `None` when they are fewer than [`Plain::SIZE`].
    fn write(&self, bytes: &mut [u8]) -> Option<()>;
}

macro_rules! plain_integer {
    ($($int:ty),*) => {$(
        impl Plain for $int {
            const SIZE: usize = size_of::<$int>();

            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.first_chunk().map(|b| Self::from_le_bytes(*b))
            }

            fn write(&self, bytes: &mut [u8]) -> Option<()> {
                *bytes.first_chunk_mut()? = self.to_le_bytes();
                Some(())
            }
        }
    )*};
}

plain_integer!(u8, u16, u32, u64);

impl<T: Plain + Copy + Default, const N: usize> Plain for [T; N] {
    const SIZE: usize = T::SIZE * N;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut all = [T::default(); N];
        for (i, one) in all.iter_mut().enumerate() {
            *one = T::read(bytes.get(i * T::SIZE..)?)?;
        }
        Some(all)
    }

    fn write(&self, bytes: &mut [u8]) -> Option<()> {
        for (i, one) in self.iter().enumerate() {
            one.write(bytes.get_mut(i * T::SIZE..)?)?;
        }
        Some(())
    }
}

/// Declares a `#[repr(C)]` structure without padding whose fields are [`Plain`], and its size.
macro_rules! plain_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size, concat!("size of ", stringify!($name)));
            assert!(
                0 $(+ size_of::<$type>())* == $size,
                concat!("implicit padding in ", stringify!($name))
            );
        };

        impl $crate::Plain for $name {
            const SIZE: usize = $size;

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self {
                    $($field: $crate::Plain::read(bytes.get(core::mem::offset_of!($name, $field)..)?)?,)*
                })
            }

            fn write(&self, bytes: &mut [u8]) -> Option<()> {
                $(self.$field.write(bytes.get_mut(core::mem::offset_of!($name, $field)..)?)?;)*
                Some(())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                let zeros = [0u8; $size];
                match <Self as $crate::Plain>::read(&zeros) {
                    Some(zero) => zero,
                    None => unreachable!(),
                }
            }
        }
    };
}

/// Declares a number that a guest wrote and the names of its known values; an unknown one survives as data.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $repr:ty {
            $($(#[$value_meta:meta])* $value:ident = $number:literal => $text:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$value_meta])* pub const $value: Self = Self($number);)*

            /// Every known value.
            pub const KNOWN: &'static [Self] = &[$(Self::$value),*];

            /// The word for a known value.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "unknown({})", self.0),
                }
            }
        }

        impl $crate::Plain for $name {
            const SIZE: usize = size_of::<$repr>();

            fn read(bytes: &[u8]) -> Option<Self> {
                <$repr as $crate::Plain>::read(bytes).map(Self)
            }

            fn write(&self, bytes: &mut [u8]) -> Option<()> {
                self.0.write(bytes)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self(0)
            }
        }
    };
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro makes the structures of the contract, which are public")]
mod test {
    use super::Plain;

    plain_struct! {
        /// A sample.
        pub struct Sample: 16 {
            /// A word.
            pub word: u64,
            /// Two halves.
            pub halves: [u16; 2],
            /// A number.
            pub number: u32,
        }
    }

    #[test]
    fn sample_written_and_read_is_the_same() {
        let sample = Sample { word: 0x0102_0304_0506_0708, halves: [9, 10], number: 11 };
        let mut bytes = [0; 16];
        assert_eq!(sample.write(&mut bytes), Some(()));
        assert_eq!(bytes[..10], [8, 7, 6, 5, 4, 3, 2, 1, 9, 0]);
        assert_eq!(Sample::read(&bytes), Some(sample));
    }

    #[test]
    fn read_of_too_few_bytes_is_none() {
        assert_eq!(Sample::read(&[0; 15]), None);
        assert_eq!(Sample::default().write(&mut [0; 15]), None);
    }
}
