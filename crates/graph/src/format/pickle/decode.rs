//! The opcodes of protocols 2 to 5 (Python's `pickletools` is their documentation), one pass, no recursion.

use std::collections::HashMap;

use super::{Fault, Id, Pickle, Value, globals};

/// Decodes `bytes` up to the first STOP.
pub(super) fn decode(bytes: &[u8]) -> Result<Pickle, Fault> {
    let mut machine = Machine { bytes, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    loop {
        let offset = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Pickle { values: machine.values, root }),
            Err(Stop { what, help }) => return Err(Fault { offset, what, help }),
        }
    }
}

/// A [`Fault`] that does not know yet where it happened.
struct Stop {
    what: String,
    help: Option<String>,
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self { what, help: None }
    }
}

impl From<&str> for Stop {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK stands.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Runs one opcode; the root once it is STOP.
    fn step(&mut self) -> Result<Option<Id>, Stop> {
        match self.byte()? {
            b'.' => return Ok(Some(self.pop()?)),
            0x80 => {
                let version = self.byte()?;
                if !(2..=5).contains(&version) {
                    return Err(format!("pickle protocol {version} is not one of 2 to 5").into());
                }
            }
            // FRAME is a hint for streaming readers.
            0x95 => {
                self.take(8)?;
            }

            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let i = i64::from(self.byte()?);
                self.push(Value::Int(i));
            }
            b'M' => {
                let i = self.unsigned(2)? as i64;
                self.push(Value::Int(i));
            }
            b'J' => {
                let i = self.unsigned(4)? as u32 as i32;
                self.push(Value::Int(i.into()));
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                let raw = self.take(8)?;
                self.push(Value::Float(f64::from_be_bytes(raw.try_into().expect("8 bytes were taken"))));
            }

            0x8c => self.string(1)?,
            b'X' => self.string(4)?,
            0x8d => self.string(8)?,
            b'U' | b'C' => self.blob(1)?,
            b'T' | b'B' => self.blob(4)?,
            0x8e | 0x96 => self.blob(8)?,

            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b']' => self.push(Value::List(vec![])),
            b'}' => self.push(Value::Dict(vec![])),
            0x8f => self.push(Value::Set(vec![])),
            b')' => self.push(Value::Tuple(vec![])),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items));
            }
            0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::Set(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)?;
            }

            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let top = self.top()?;
                self.memo.insert(self.memo.len() as u64, top);
            }
            b'h' => self.get(1)?,
            b'j' => self.get(4)?,

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_string()?, self.pop_string()?);
                self.global(module, name)?;
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.build(class, args)?;
            }
            0x92 => {
                let (_keywords, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.build(class, args)?;
            }
            b'b' => self.set_state()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            other => {
                return Err(Stop {
                    what: format!("opcode {other:#04x} is none that PyTorch writes"),
                    help: Some("the file is damaged, or was pickled by something other than torch.save".into()),
                });
            }
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let bytes = self.bytes;
        let got = bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let Some(got) = got else {
            return Err(Stop {
                what: format!("the pickle ends after {} bytes, {len} more are needed here", bytes.len()),
                help: Some("the file is truncated; download or save it again".into()),
            });
        };
        self.at += len;
        Ok(got)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?[0])
    }

    /// Little-endian unsigned number of `width` bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64, Stop> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// The bytes after a length of `width` bytes. A length beyond the input fails before anything is allocated.
    fn counted(&mut self, width: usize) -> Result<&'a [u8], Stop> {
        let len = self.unsigned(width)?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<String, Stop> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            return self.take(rest.len() + 1).map(|_| String::new());
        };
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn long(&mut self, width: usize) -> Result<(), Stop> {
        let raw = self.counted(width)?;
        let negative = raw.last().is_some_and(|b| b & 0x80 != 0);
        self.push(if raw.len() > 8 {
            Value::BigInt
        } else {
            let mut wide = if negative { [0xff; 8] } else { [0; 8] };
            wide[..raw.len()].copy_from_slice(raw);
            Value::Int(i64::from_le_bytes(wide))
        });
        Ok(())
    }

    fn string(&mut self, width: usize) -> Result<(), Stop> {
        // Python writes lone surrogates, which are no UTF-8; no name we compare with has any.
        let text = String::from_utf8_lossy(self.counted(width)?).into_owned();
        self.push(Value::Str(text));
        Ok(())
    }

    fn blob(&mut self, width: usize) -> Result<(), Stop> {
        let bytes = self.counted(width)?.to_vec();
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Result<Id, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack[floor..].last() {
            Some(&id) => Ok(id),
            None => Err("takes a value from an empty stack".into()),
        }
    }

    fn pop(&mut self) -> Result<Id, Stop> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self.marks.pop().ok_or("closes a group that was never opened")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_string(&mut self) -> Result<String, Stop> {
        let id = self.pop()?;
        match &self.values[id] {
            Value::Str(s) => Ok(s.clone()),
            _ => Err("the name of a class is not a string".into()),
        }
    }

    fn tuple(&mut self, len: usize) -> Result<(), Stop> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), Stop> {
        let target = self.top()?;
        match &mut self.values[target] {
            Value::List(list) | Value::Set(list) => list.extend(items),
            _ => return Err("appends to something that is no list and no set".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), Stop> {
        let target = self.top()?;
        let Value::Dict(dict) = &mut self.values[target] else {
            return Err("sets items of something that is no dict".into());
        };
        let pairs = items.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("a key without a value".into());
        }
        dict.extend(pairs.map(|p| (p[0], p[1])));
        Ok(())
    }

    fn put(&mut self, width: usize) -> Result<(), Stop> {
        let key = self.unsigned(width)?;
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, width: usize) -> Result<(), Stop> {
        let key = self.unsigned(width)?;
        let id = *self.memo.get(&key).ok_or_else(|| format!("refers to memo {key}, which is not set"))?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: String, name: String) -> Result<(), Stop> {
        if !globals::allowed(&module, &name) {
            return Err(Stop {
                what: format!("names `{module}.{name}`, which no detector checkpoint needs"),
                help: Some(
                    "nothing was run; if you trust the file, load it in Python and save the bare model again, \
                     otherwise treat it as an attack"
                        .into(),
                ),
            });
        }
        self.push(Value::Global { module, name });
        Ok(())
    }

    /// `class(*args)`: an ordered dict becomes a dict, all else a record.
    fn build(&mut self, class: Id, args: Id) -> Result<(), Stop> {
        let Value::Global { module, name } = &self.values[class] else {
            return Err("calls something that is no class and no function".into());
        };
        let Value::Tuple(arguments) = &self.values[args] else {
            return Err(format!("calls `{module}.{name}` with arguments that are no tuple").into());
        };
        let dict = module == "collections" && (arguments.is_empty() || name == "defaultdict");
        self.push(if dict { Value::Dict(vec![]) } else { Value::Object { class, args, state: None } });
        Ok(())
    }

    fn set_state(&mut self) -> Result<(), Stop> {
        let new = self.pop()?;
        let target = self.top()?;
        match &mut self.values[target] {
            Value::Object { state, .. } => *state = Some(new),
            Value::Dict(_) => {} // attributes of an OrderedDict (state_dict's `_metadata`) say nothing about a model
            _ => return Err("sets the state of something that is no object".into()),
        }
        Ok(())
    }
}
