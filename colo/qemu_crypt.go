package colo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/qmp"
)

// QEMU takes a pre-shared key from a file only. The primary's QEMU, a client, reads it when the object is made; the standby's when
// somebody connects. So the primary's file lives for a moment, and the standby's until COLO runs: whoever connects later is refused even
// with the right key.

const (
	credsID   = "colo-tls" // QEMU's object
	keyFolder = "tls"      // in the VM's folder
	keyFile   = "keys.psk" // QEMU's name for it
	keyUser   = "qemu"     // what a QEMU calls itself by default
)

// credentials makes the object that encrypts what goes to the peer, in the place of an earlier one. Without a key it only removes that.
func (c *qemuCopy) credentials(ctx context.Context, key Key, endpoint string) error {
	if err := c.endCredentials(ctx); err != nil || len(key) == 0 {
		return err
	}
	uid, gid, err := c.l.user(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, keyFolder)
	if err := writeKey(dir, key, uid, gid); err != nil {
		return fmt.Errorf("replication key: %w", errors.Join(err, c.removeKey()))
	}
	if err := addCredentials(ctx, c.main, dir, endpoint); err != nil {
		return errors.Join(err, c.removeKey())
	}
	if endpoint == "client" {
		return c.removeKey()
	}
	return nil
}

func addCredentials(ctx context.Context, m *qmp.Client, dir, endpoint string) error {
	return m.ObjectAdd(ctx, "tls-creds-psk", credsID, map[string]any{"dir": dir, "endpoint": endpoint})
}

// writeKey makes the file anew, so that nobody can have it open already.
func writeKey(dir string, key Key, uid, gid int) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	file := filepath.Join(dir, keyFile)
	if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%x\n", keyUser, []byte(key)), 0o600); err != nil {
		return err
	}
	if uid == os.Geteuid() {
		return nil
	}
	return errors.Join(os.Chown(dir, uid, gid), os.Chown(file, uid, gid))
}

func (c *qemuCopy) removeKey() error { return os.RemoveAll(filepath.Join(c.dir, keyFolder)) }

// endCredentials removes the key's file and QEMU's object. Connections that use it are not touched.
func (c *qemuCopy) endCredentials(ctx context.Context) error {
	if err := c.removeKey(); err != nil {
		return err
	}
	objects, err := c.main.QOMList(ctx, "/objects")
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.Name == credsID {
			return c.main.ObjectDel(ctx, credsID)
		}
	}
	return nil
}

// creds is the object that connections to or of a standby use; empty is none.
func (e Endpoint) creds() string {
	if len(e.Key) == 0 {
		return ""
	}
	return credsID
}

// checkCrypt finds out whether this QEMU can encrypt replication. One that was built without GnuTLS has the objects in its schema, so it has to try.
func (l *qemuLauncher) checkCrypt(ctx context.Context, f *qmp.Features, m *qmp.Client, dir string) error {
	if l.cfg.Plain {
		return nil
	}
	err := f.Require("tls-creds-psk", "chardev tls", "nbd server tls", "migration tls")
	if err == nil {
		dir = filepath.Join(dir, keyFolder)
		uid, gid := os.Geteuid(), os.Getegid() // the starter's QEMUs aren't asked
		if u := l.cfg.User; u != nil {
			uid, gid = int(u.UID), int(u.GID)
		}
		if err := writeKey(dir, newKey(), uid, gid); err != nil {
			return err
		}
		err = addCredentials(ctx, m, dir, "server")
	}
	if err != nil {
		return &UnfitError{l.cfg.QEMU[0], "it can't encrypt replication: " + err.Error(),
			"install a QEMU with GnuTLS, such as Debian's; or, only if nobody else can reach the links, set replication: {encryption: off} on both nodes"}
	}
	return nil
}
