package colo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
)

// ErrVerifyRuns is returned for what can't be done while the halves of the VM's disks are compared: both need QEMU's one NBD server.
var ErrVerifyRuns = errors.New("its disks are being compared")

// ErrBackupYields is returned by a backup to a server that was ended because its VM is not protected any more, or is about to be: the server would have decided when it
// can be.
var ErrBackupYields = errors.New("the backup has made way")

// backupServer is where a backup goes that is to go to a server.
func backupServer(o BackupOptions) (blockrepl.BackupServer, error) {
	s, err := blockrepl.ParseBackupServer(o.Server)
	switch {
	case err != nil:
		return s, err
	case o.Dir != "":
		return s, fmt.Errorf("a backup goes to the folder %s or to %s: choose one", o.Dir, o.Server)
	case o.Since != "":
		return s, fmt.Errorf("a backup to %s copies everything: one that is based on another one (--since) needs a folder", o.Server)
	}
	return s, nil
}

// backupToServer copies a VM's disks to an NBD server, once beginBackup has kept away what would be in its way.
func (n *Node) backupToServer(ctx context.Context, m *machine, c Copy, o BackupOptions, out Manifest) (Manifest, error) {
	s, err := backupServer(o)
	if err != nil {
		return Manifest{}, err
	}
	if !m.verifying.TryLock() {
		return Manifest{}, fmt.Errorf("%s: %w: again when that has ended", m.name, ErrVerifyRuns)
	}
	defer m.verifying.Unlock()
	ctx, ended := m.untilChange(ctx)
	defer ended()
	out.Time = time.Now().UTC()
	err = c.Backup(ctx, blockrepl.BackupOptions{Server: &s, Speed: o.Limit, OnLeft: m.backupLeft, OnProgress: func(done, total int64) {
		out.Bytes = total
		m.tellBackup("making a backup", done, total)
	}})
	if err != nil {
		if why := context.Cause(ctx); errors.Is(why, ErrBackupYields) && !errors.Is(err, why) {
			err = fmt.Errorf("%w: %w", why, err)
		}
		return Manifest{}, err
	}
	m.emit(Event{Kind: "backup", State: m.State(), Text: fmt.Sprintf("%d bytes to %s", out.Bytes, o.Server), Fields: map[string]any{"server": o.Server, "bytes": out.Bytes}})
	return out, nil
}

// untilChange is a context for a backup that ends, with ErrBackupYields, when the VM's state changes: a VM that has lost its other copy gets none while a backup is
// made, nor does one that runs alone (see noBackup), and how long that takes is up to the server and the network. An attempt to protect a VM that was refused for the
// backup's sake has changed the state, too. The caller calls done, which waits for what is used here.
func (m *machine) untilChange(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	begin, ended := m.inState(), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			m.mu.Lock()
			changed, since, now, why := m.changed, m.since, m.state, m.why
			m.mu.Unlock()
			switch {
			case now != Protected && now != Solo:
				cancel(fmt.Errorf("%s: %w: the VM is %s", m.name, ErrBackupYields, joinText(string(now), why)))
				return
			case !since.Equal(begin):
				cancel(fmt.Errorf("%s: %w: the VM has become %s meanwhile", m.name, ErrBackupYields, joinText(string(now), why)))
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// checkBackupServer tells why backupToServer would be refused now, and writes nothing.
func (n *Node) checkBackupServer(ctx context.Context, m *machine, o BackupOptions) error {
	s, err := backupServer(o)
	if err != nil {
		return err
	}
	if !m.verifying.TryLock() {
		return fmt.Errorf("%s: %w", m.name, ErrVerifyRuns)
	}
	m.verifying.Unlock()
	if err := blockrepl.CheckScratch(n.cfg.StorageDir); err != nil {
		return err
	}
	_, spec := m.info()
	return s.Check(ctx, spec.disks(n.cfg.StorageDir))
}

// scratch is the folder of what a VM's guest overwrites while its disks are copied to a server. It is there only then, and it is in the storage folder: the
// run folder is memory.
func (l *qemuLauncher) scratch(vm string) string {
	return filepath.Join(l.cfg.StorageDir, ".backup-"+vm)
}

// dropScratch removes what is left of that folder by a daemon that was killed, or by a host that lost power. Nothing depends on it.
func (l *qemuLauncher) dropScratch(vm string) {
	if err := os.RemoveAll(l.scratch(vm)); err != nil {
		l.cfg.Log.Warn("the folder of a backup that was interrupted is still there", "vm", vm, "err", err)
	}
}

// backupTo makes the scratch images for a backup to a server, and the backup.
func (c *qemuCopy) backupTo(ctx context.Context, o blockrepl.BackupOptions) (err error) {
	dir := c.l.scratch(c.spec.Name)
	if err := os.RemoveAll(dir); err != nil { // of a daemon that was killed
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	uid, gid, err := c.l.user(ctx)
	if err != nil {
		return err
	}
	o.Targets, o.Socket = map[string]string{}, filepath.Join(c.dir, scanSocket)
	for _, d := range c.disks {
		path := filepath.Join(dir, d.Name+".qcow2")
		o.Targets[d.Name] = path
		if err := c.l.images.CreateBackup(ctx, path, d.Size, ""); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		if uid != os.Geteuid() {
			if err := os.Chown(path, uid, gid); err != nil {
				return err
			}
		}
	}
	if uid != os.Geteuid() {
		if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // QEMU's user has to get through it
			return err
		}
	}
	return blockrepl.Backup(ctx, c.main, c.disks, o)
}
