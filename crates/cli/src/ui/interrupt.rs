//! Ctrl-C while a run is under way that can be gone on with.

/// From here on Ctrl-C says `hint` before it ends the program, which it does as ever.
pub fn on_interrupt(hint: String) {
    #[cfg(unix)]
    if !is_ignored() {
        use signal_hook::consts::SIGINT;
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT]) else { return };
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                super::hint(&hint);
                let _ = signal_hook::low_level::emulate_default_handler(SIGINT);
            }
        });
    }
    #[cfg(not(unix))]
    drop(hint);
}

/// Whether Ctrl-C is for others: shells start jobs in the background so.
#[cfg(unix)]
fn is_ignored() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes; the old one is written whole where the call succeeds, and zeros are one.
    let action = unsafe {
        libc::sigaction(libc::SIGINT, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
