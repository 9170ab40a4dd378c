package provision

import (
	"errors"
	"fmt"
	"strings"
)

// Errors that a person can do something about.
var (
	// ErrNoApt is returned where packages are needed and apt-get or dpkg-deb is missing.
	ErrNoApt = errors.New("no apt on this machine: install QEMU 11 or newer, and name it and a kernel in " +
		QEMUVariable + ", " + QEMUImgVariable + ", " + KernelVariable + " and " + ModulesVariable)
	// ErrNoKeyring is returned where the keys of Debian's archive are missing.
	ErrNoKeyring = errors.New("the keys of Debian's archive are missing: install the package debian-archive-keyring")
	// ErrNoMirror is returned where apt's configuration names no Debian mirror.
	ErrNoMirror = errors.New("apt on this machine knows no Debian mirror: give one with " + MirrorVariable)
	// ErrNetwork is returned when the mirror can't be reached.
	ErrNetwork = errors.New("the mirror can't be reached: try again later (a started download goes on), " +
		"or give another one with " + MirrorVariable)
	// ErrSignature is returned when apt or we don't accept what the mirror sent.
	ErrSignature = errors.New("signature or checksum is wrong; is debian-archive-keyring up to date?")
	// ErrMissing is returned when the mirror lacks the release or a package.
	ErrMissing = errors.New("the mirror lacks what is needed: give a full Debian mirror with " + MirrorVariable)
	// ErrNoSpace is returned before or during work when the cache's file system is too full.
	ErrNoSpace = errors.New("too little space in the cache folder: make room or set XDG_CACHE_HOME")
	// ErrArch is returned on a machine that is not x86-64.
	ErrArch = errors.New("only x86-64 Linux is supported")
)

// AptError is a failed run of apt-get. It wraps one of the errors above where
// the reason is known.
type AptError struct {
	Command string // its first word: update, install
	Output  string // its errors and warnings
	Reason  error
}

func (e *AptError) Error() string {
	text := fmt.Sprintf("apt-get %s: %v", e.Command, e.Reason)
	if e.Output != "" {
		text += "\n" + e.Output
	}
	return text
}

// Unwrap returns the reason.
func (e *AptError) Unwrap() error { return e.Reason }

// aptReasons are the words by which apt's report, in the C locale, tells the
// reason. The first match counts: a bad signature also ends in "Failed to fetch".
var aptReasons = []struct {
	words  string
	reason error
}{
	{"No space left on device", ErrNoSpace},
	{"enough free space", ErrNoSpace},
	{"NO_PUBKEY", ErrSignature},
	{"BADSIG", ErrSignature},
	{"EXPKEYSIG", ErrSignature},
	{"is not signed", ErrSignature},
	{"isn't signed", ErrSignature},
	{"Hash Sum mismatch", ErrSignature},
	{"signature", ErrSignature},
	{"does not have a Release file", ErrMissing},
	{"404", ErrMissing},
	{"Unable to locate package", ErrMissing},
	{"was not found", ErrMissing},
	{"has no installation candidate", ErrMissing},
	{"unmet dependencies", ErrMissing},
	{"Could not resolve", ErrNetwork},
	{"Temporary failure", ErrNetwork},
	{"onnection failed", ErrNetwork},
	{"Could not connect", ErrNetwork},
	{"Unable to connect", ErrNetwork},
	{"Cannot initiate the connection", ErrNetwork},
	{"onnection timed out", ErrNetwork},
	{"Failed to fetch", ErrNetwork},
}

// newAptError finds the reason in apt's report; failed is what running it gave.
func newAptError(command, report string, failed error) *AptError {
	e := &AptError{Command: command, Reason: failed}
	var kept []string
	for line := range strings.Lines(report) {
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "W:") {
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	e.Output = strings.Join(kept, "\n")
	for _, r := range aptReasons {
		if strings.Contains(report, r.words) {
			e.Reason = fmt.Errorf("%w (%w)", r.reason, failed)
			break
		}
	}
	return e
}
