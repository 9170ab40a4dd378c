package config

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// ReadKey reads the key of the heartbeats. A file that others may read is refused.
func ReadKey(file string) ([]byte, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %04o lets others read the key: chmod 600 %s", file, st.Mode().Perm(), file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(string(bytes.TrimSpace(data)))
	if err != nil || len(key) != heartbeat.KeySize {
		return nil, fmt.Errorf("%s: expected %d bytes in hexadecimal", file, heartbeat.KeySize)
	}
	return key, nil
}

// WriteKey makes a new key in a new file.
func WriteKey(file string) error {
	key := make([]byte, heartbeat.KeySize)
	_, _ = rand.Read(key) // never fails
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}
