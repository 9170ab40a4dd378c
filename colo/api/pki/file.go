package pki

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Errors of files that are read.
var (
	// ErrLooseMode is returned for a file with a key that others than its owner can read.
	ErrLooseMode = errors.New("others can read this key")

	// ErrDamaged is returned for a file that doesn't hold what it should.
	ErrDamaged = errors.New("not a usable certificate file")

	// ErrExpired is returned by Credentials.Err when the certificate has ended, or has not begun, by this machine's clock.
	ErrExpired = errors.New("certificate not valid at this time")
)

func exists(path string, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrExists, path)
}

// locked runs do while holding the authority's folder.
func locked(dir string, do func() error) error {
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNoAuthority, dir)
		}
		return err
	}
	defer func() { _ = d.Close() }()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	return do()
}

// writeNew makes a file that must not be there yet; it appears whole or not at all.
func writeNew(path string, mode fs.FileMode, data []byte) error {
	return write(path, mode, data, func(tmp string) error {
		err := os.Link(tmp, path)
		if errors.Is(err, fs.ErrExist) {
			return exists(path, nil)
		}
		return err
	})
}

// replace makes a file or puts a new one in the place of the old one.
func replace(path string, mode fs.FileMode, data []byte) error {
	return write(path, mode, data, func(tmp string) error { return os.Rename(tmp, path) })
}

func write(path string, mode fs.FileMode, data []byte, place func(tmp string) error) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*") // mode 0600 from the beginning
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = place(tmp.Name())
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// readPrivate reads a file with a key. The mode is asked of the open file, so it can't be another one that is read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, must have 0600 or less", ErrLooseMode, path, mode)
	}
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

func damaged(path, format string, a ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrDamaged, path, fmt.Errorf(format, a...))
}

func readAuthority(dir string) (authority, error) {
	path := filepath.Join(dir, AuthorityFile)
	raw, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return authority{}, fmt.Errorf("%w: %s", ErrNoAuthority, dir)
	}
	if err != nil {
		return authority{}, err
	}
	pair, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return authority{}, damaged(path, "%w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return authority{}, damaged(path, "%q is no authority", pair.Leaf.Subject.CommonName)
	}
	return authority{key: key, cert: pair.Leaf}, nil
}

// readTrust reads all authorities in a file; the newest is first.
func readTrust(path string) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for rest := raw; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, damaged(path, "%d bytes that are no certificate", len(rest))
			}
			break
		}
		if b.Type != "CERTIFICATE" {
			return nil, damaged(path, "holds a %s", b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, damaged(path, "%w", err)
		}
		if !c.IsCA {
			return nil, damaged(path, "%q is no authority", c.Subject.CommonName)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, damaged(path, "holds no certificate")
	}
	return out, nil
}

type identityFile struct {
	id   Identity
	cert tls.Certificate
}

func readIdentityFile(path string) (identityFile, error) {
	raw, err := readPrivate(path)
	if err != nil {
		return identityFile{}, err
	}
	cert, err := tls.X509KeyPair(raw, raw)
	if err != nil {
		return identityFile{}, damaged(path, "%w", err)
	}
	id, err := IdentityOf(cert.Leaf)
	if err != nil {
		return identityFile{}, damaged(path, "%w", err)
	}
	return identityFile{id: id, cert: cert}, nil
}
