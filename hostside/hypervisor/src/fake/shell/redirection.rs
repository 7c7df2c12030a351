//! Where descriptors lead while a command runs.

use super::syntax::{Redirection, Target, Word};
use super::{Leave, Shell};
use crate::fake::files::{Errno, describe};
use crate::fake::kernel::Access;
use crate::fake::kernel::sys::Sys;

/// Descriptors put aside while others are in their place; `None` was not open.
pub(super) type Aside = Vec<(u32, Option<u32>)>;

impl Shell {
    /// Opens what is redirected to. What was there before is put aside; an error
    /// was said already, and leaves the shell where it says so.
    pub(super) async fn redirect(
        &mut self,
        redirections: &[Redirection],
    ) -> (Aside, Result<(), Option<Leave>>) {
        let mut aside = Aside::new();
        for redirection in redirections {
            if let Err(leave) = self.redirect_one(redirection, &mut aside).await {
                return (aside, Err(leave));
            }
        }
        (aside, Ok(()))
    }

    async fn redirect_one(
        &mut self,
        redirection: &Redirection,
        aside: &mut Aside,
    ) -> Result<(), Option<Leave>> {
        let Redirection { fd, target } = redirection;
        let opened = match target {
            Target::Read(word) => self.open(word, Access::READ).await?,
            Target::Write(word) => self.open(word, Access::WRITE).await?,
            Target::Append(word) => self.open(word, Access::APPEND).await?,
            Target::ReadWrite(word) => {
                let access = Access {
                    read: true,
                    truncate: false,
                    ..Access::WRITE
                };
                self.open(word, access).await?
            }
            Target::Duplicate(word) => {
                let text = self.text(word).await.map_err(Some)?;
                aside.push((*fd, self.sys.put_aside(*fd).ok()));
                if text == "-" {
                    self.sys.close(*fd);
                    return Ok(());
                }
                let from = text.parse::<u32>().map_err(|_| Errno::BADF);
                let done = from.and_then(|from| self.sys.duplicate(from, *fd));
                return match done {
                    Ok(()) => Ok(()),
                    Err(errno) => {
                        self.complain(&format!("{text}: {}", describe(errno))).await;
                        self.status = 1;
                        Err(None)
                    }
                };
            }
            Target::Here(text) => {
                let word = text.get().cloned().unwrap_or_default();
                let text = self.text(&word).await.map_err(Some)?;
                let Ok((reader, writer)) = self.sys.pipe() else {
                    return Err(None);
                };
                // More than a pipe holds has a writer of its own.
                let _ = self.sys.fork(|sys: Sys| {
                    Box::pin(async move {
                        sys.close(reader);
                        let _ = sys.write(writer, text.as_bytes()).await;
                        0
                    })
                });
                self.sys.close(writer);
                reader
            }
        };
        aside.push((*fd, self.sys.put_aside(*fd).ok()));
        let _ = self.sys.duplicate(opened, *fd);
        if opened != *fd {
            self.sys.close(opened);
        } else if let Some(last) = aside.last_mut() {
            // It was closed, and the lowest number is just this one.
            if let Some(copy) = last.1.take() {
                self.sys.close(copy);
            }
        }
        Ok(())
    }

    async fn open(&mut self, word: &Word, access: Access) -> Result<u32, Option<Leave>> {
        let path = self.text(word).await.map_err(Some)?;
        match self.sys.open(&path, access).await {
            Ok(fd) => Ok(fd),
            Err(errno) => {
                let verb = if access.create.is_some() && errno != Errno::ISDIR {
                    "create"
                } else {
                    "open"
                };
                let why = match errno {
                    Errno::NOENT if access.create.is_some() => "nonexistent directory",
                    Errno::NOENT => "no such file",
                    errno => describe(errno),
                };
                self.complain(&format!("can't {verb} {path}: {why}")).await;
                self.status = 1;
                Err(None)
            }
        }
    }

    /// Puts everything back, the last first.
    pub(super) fn restore(&self, aside: Aside) {
        for (fd, copy) in aside.into_iter().rev() {
            match copy {
                Some(copy) => {
                    let _ = self.sys.duplicate(copy, fd);
                    self.sys.close(copy);
                }
                None => self.sys.close(fd),
            }
        }
    }
}
