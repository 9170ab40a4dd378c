package colo

import (
	"crypto/rand"
	"fmt"
	"log/slog"
)

// Key encrypts one replication: a new one is made for each standby. It goes to the primary with the answer to Prepare, is never stored, and
// is hidden wherever it is printed.
type Key []byte

const keySize = 32

func newKey() Key {
	k := make(Key, keySize)
	rand.Read(k) //nolint:errcheck // it can't fail
	return k
}

func (k Key) text() string {
	if len(k) == 0 {
		return "no key"
	}
	return "(key)"
}

// Format implements [fmt.Formatter].
func (k Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprint(s, k.text()) }

// LogValue implements [slog.LogValuer].
func (k Key) LogValue() slog.Value { return slog.StringValue(k.text()) }
