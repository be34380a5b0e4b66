//! Just enough of the pickle machine to read a state dict.
//!
//! A pickle is a program. This machine runs only what builds plain data, and knows four callables by name
//! (`OrderedDict`, `_rebuild_tensor`, `_rebuild_tensor_v2`, `_rebuild_parameter`); any other is an error, so no code of
//! the file or of the host is ever called. Objects live in an arena and refer to each other by index, so that sharing
//! costs nothing and depth cannot exhaust the stack.

use std::collections::HashMap;

use super::tensor_ref::{TensorRef, storage_dtype};
use crate::checkpoint::StoredDtype;

/// Index of an object in the arena.
type Id = usize;

/// A value of the pickle.
#[derive(Debug, Clone)]
enum Object {
    /// None, a boolean, a float: nothing a tensor is made of.
    Plain,
    Integer(i64),
    Text(String),
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name of Python, `module.name`.
    Global(String),
    Storage {
        key: String,
        dtype: StoredDtype,
        length: usize,
    },
    Tensor(TensorRef),
}

type Result<T> = std::result::Result<T, String>;

/// The tensors of a pickled state dict, in the order of names.
pub(super) fn read_state_dict(pickle: &[u8]) -> Result<Vec<(String, TensorRef)>> {
    let mut machine = Machine {
        input: pickle,
        arena: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let Object::Dict(entries) = &machine.arena[root] else {
        return Err("is not a dictionary of tensors; save the model's state_dict()".to_owned());
    };
    let mut tensors = HashMap::with_capacity(entries.len());
    for &(key, value) in entries {
        let Object::Text(name) = &machine.arena[key] else {
            return Err("has a key that is no text; save the model's state_dict()".to_owned());
        };
        let Object::Tensor(tensor) = &machine.arena[value] else {
            return Err(format!(
                "entry `{name}` is not a tensor; save the model's state_dict() alone"
            ));
        };
        // As in Python, the last entry under a key is the one that counts.
        tensors.insert(name.clone(), tensor.clone());
    }
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(tensors)
}

struct Machine<'a> {
    input: &'a [u8],
    arena: Vec<Object>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// Runs the program to its end and gives what it leaves.
    fn run(&mut self) -> Result<Id> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?), // PROTO
                0x95 => drop(self.take(8)?), // FRAME
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' | 0x88 | 0x89 => self.push(Object::Plain), // None, True, False
                b'G' => {
                    self.take(8)?; // BINFLOAT
                    self.push(Object::Plain);
                }
                b'K' => self.integer(1)?,
                b'M' => self.integer(2)?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Object::Integer(i64::from(value)));
                }
                0x8a => self.long()?,
                b'U' | 0x8c => self.text(1)?, // SHORT_BINSTRING, SHORT_BINUNICODE
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b')' | b']' => self.push(Object::Sequence(Vec::new())),
                b'}' => self.push(Object::Dict(Vec::new())),
                b't' | b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Object::Sequence(items));
                }
                count @ 0x85..=0x87 => {
                    let items = self.pop_many(usize::from(count - 0x84))?; // TUPLE1 to TUPLE3
                    self.push(Object::Sequence(items));
                }
                b'a' => {
                    let items = self.pop_many(1)?;
                    self.append(items)?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.set_items(&items)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let at = u32::from(self.byte()?);
                    self.remember(at)?;
                }
                b'r' => {
                    let at = u32::from_le_bytes(self.array()?);
                    self.remember(at)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
                b'h' => {
                    let at = u32::from(self.byte()?);
                    self.recall(at)?;
                }
                b'j' => {
                    let at = u32::from_le_bytes(self.array()?);
                    self.recall(at)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Object::Global(format!("{module}.{name}")));
                }
                0x93 => self.stack_global()?,
                b'Q' => self.persistent_load()?,
                b'R' => self.reduce()?,
                // BUILD only ever sets attributes of the dictionary, such as its version.
                b'b' => drop(self.pop()?),
                other => {
                    return Err(format!(
                        "unknown instruction {other:#04x}; the file is damaged"
                    ));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let Some((taken, rest)) = self.input.split_at_checked(count) else {
            return Err("ends in the middle of an instruction; the file is truncated".to_owned());
        };
        self.input = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    /// A little-endian number of `size` bytes, at most 8.
    fn unsigned(&mut self, size: usize) -> Result<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(self.take(size)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn line(&mut self) -> Result<String> {
        let length = self.input.iter().position(|&byte| byte == b'\n');
        let length = length.ok_or("ends in the middle of a name; the file is truncated")?;
        let line = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn integer(&mut self, size: usize) -> Result<()> {
        let value = self.unsigned(size)?;
        self.push(Object::Integer(value as i64));
        Ok(())
    }

    /// LONG1: a length, then a little-endian two's complement number.
    fn long(&mut self) -> Result<()> {
        let size = usize::from(self.byte()?);
        if size > 8 {
            return Err(format!("an integer of {size} bytes is too large"));
        }
        let unused = 64 - 8 * size as u32;
        let value = self.unsigned(size)?;
        let value = if size == 0 {
            0
        } else {
            (value << unused) as i64 >> unused
        };
        self.push(Object::Integer(value));
        Ok(())
    }

    /// A text behind its length of `size` bytes.
    fn text(&mut self, size: usize) -> Result<()> {
        let length = self.unsigned(size)?;
        let length = usize::try_from(length)
            .map_err(|_| "a text longer than memory; the file is damaged")?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Object::Text(text));
        Ok(())
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.arena.len());
        self.arena.push(object);
    }

    fn pop(&mut self) -> Result<Id> {
        self.pop_many(1).map(|ids| ids[0])
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= floor => Ok(self.stack.split_off(height)),
            _ => Err("takes more than it has; the file is damaged".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let height = self
            .marks
            .pop()
            .ok_or("closes what it has not opened; the file is damaged")?;
        Ok(self.stack.split_off(height))
    }

    fn top(&self) -> Result<Id> {
        self.stack
            .last()
            .copied()
            .ok_or_else(|| "takes more than it has; the file is damaged".to_owned())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.arena[top] {
            Object::Sequence(list) => {
                list.extend(items);
                Ok(())
            }
            _ => Err("appends to what is no list; the file is damaged".to_owned()),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        match (&mut self.arena[top], items.len() % 2) {
            (Object::Dict(entries), 0) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err("sets entries of what is no dictionary; the file is damaged".to_owned()),
        }
    }

    fn remember(&mut self, at: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<()> {
        let id = *self
            .memo
            .get(&at)
            .ok_or("recalls what it has not remembered; the file is damaged")?;
        self.stack.push(id);
        Ok(())
    }

    fn stack_global(&mut self) -> Result<()> {
        let names = self.pop_many(2)?;
        match (&self.arena[names[0]], &self.arena[names[1]]) {
            (Object::Text(module), Object::Text(name)) => {
                let global = Object::Global(format!("{module}.{name}"));
                self.push(global);
                Ok(())
            }
            _ => Err("names a global by what is no text; the file is damaged".to_owned()),
        }
    }

    fn sequence(&self, id: Id) -> Result<&[Id]> {
        match &self.arena[id] {
            Object::Sequence(items) => Ok(items),
            _ => Err("has something else where a tuple belongs; the file is damaged".to_owned()),
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.arena[id] {
            Object::Integer(value) => usize::try_from(value)
                .map_err(|_| format!("{value} is no size; the file is damaged")),
            _ => Err("has something else where a size belongs; the file is damaged".to_owned()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        self.sequence(id)?
            .iter()
            .map(|&item| self.size(item))
            .collect()
    }

    /// The reference to a storage, `("storage", type, key, location, length)`.
    fn persistent_load(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match *self.sequence(id)? {
            [_, kind, key, _, length] => match (&self.arena[kind], &self.arena[key]) {
                (Object::Global(kind), Object::Text(key)) => Object::Storage {
                    key: key.clone(),
                    dtype: storage_dtype(kind),
                    length: self.size(length)?,
                },
                _ => {
                    return Err(
                        "refers to a storage without type or key; the file is damaged".to_owned(),
                    );
                }
            },
            _ => {
                return Err(
                    "refers to something other than a storage; the file is damaged".to_owned(),
                );
            }
        };
        self.push(storage);
        Ok(())
    }

    /// Calls one of the callables the machine knows.
    fn reduce(&mut self) -> Result<()> {
        let call = self.pop_many(2)?;
        let Object::Global(callable) = &self.arena[call[0]] else {
            return Err("calls what is no function; the file is damaged".to_owned());
        };
        let arguments = self.sequence(call[1])?;
        let made = match (callable.as_str(), arguments) {
            ("collections.OrderedDict", []) => Object::Dict(Vec::new()),
            ("collections.OrderedDict", &[items, ..]) => {
                let pair = |&item: &Id| match *self.sequence(item)? {
                    [key, value] => Ok((key, value)),
                    _ => Err(
                        "has a dictionary entry that is no pair; the file is damaged".to_owned(),
                    ),
                };
                Object::Dict(
                    self.sequence(items)?
                        .iter()
                        .map(pair)
                        .collect::<Result<_>>()?,
                )
            }
            (
                "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
                &[storage, offset, shape, strides, ..],
            ) => Object::Tensor(self.tensor(storage, offset, shape, strides)?),
            ("torch._utils._rebuild_parameter", &[tensor, ..]) => self.arena[tensor].clone(),
            (other, _) => {
                return Err(format!(
                    "holds a Python object of `{other}`, which is not read; save the model's state_dict() alone"
                ));
            }
        };
        self.push(made);
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<TensorRef> {
        let Object::Storage { key, dtype, length } = &self.arena[storage] else {
            return Err("has a tensor without a storage; the file is damaged".to_owned());
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err("has a tensor with more axes than strides; the file is damaged".to_owned());
        }
        Ok(TensorRef {
            storage: key.clone(),
            dtype: dtype.clone(),
            storage_length: *length,
            offset: self.size(offset)?,
            shape,
            strides,
        })
    }
}
