package colo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Starter starts the QEMUs of a node in its launcher's stead, for example as libvirt's domains. The launcher keeps everything else: images, taps, the
// QMP sockets and with them the whole of COLO. What a Starter starts must outlive it, and is found again without it.
//
// All methods may be called concurrently, those with a VM's name for different VMs only.
type Starter interface {
	// Name is how a node tells its peer: a VM's two copies have to be started in the same way, because the machines would differ otherwise.
	Name() string
	// User is who QEMU runs as. What it opens is made to belong to him.
	User(ctx context.Context) (uid, gid int, err error)
	// Check finds out, without changing anything, why this VM can't be started.
	Check(ctx context.Context, r StartRequest) error
	// Start starts a QEMU that listens on its sockets and whose guest does not run. It returns when the process is there.
	Start(ctx context.Context, r StartRequest) (pid int, err error)
	// Forget is called after the VM's QEMU has ended: whoever has started it should know so. It does nothing for a VM that nothing is known of. An
	// error changes nothing for the VM until its next Start.
	Forget(ctx context.Context, vm string) error
	// Log is the file with what the VM's QEMU has printed; empty if there is none.
	Log(vm string) string
	// EndsWithGuest says whether a QEMU is ended by somebody else as soon as its guest has switched itself off.
	EndsWithGuest() bool
}

// StartRequest says which QEMU to start.
type StartRequest struct {
	Spec  *Spec
	ID    string // of the VM
	QEMU  string // program
	Accel string // kvm or tcg
	// Args is what the launcher needs on the command line besides the machine itself: sockets, disks, NICs, the way in for a primary's memory.
	Args []string
	// Monitor is the path of a QMP socket in Args that nobody is connected to.
	Monitor string
	// Serial is the file for what the guest writes to its first serial port.
	Serial string
}

// ownArgs are the arguments that a QEMU has whoever starts it.
func (l *qemuLauncher) ownArgs(r LaunchRequest) []string {
	return append([]string{"-pidfile", filepath.Join(l.dir(r.Spec.Name), pidFile)}, l.colo(r)...)
}

func (l *qemuLauncher) startRequest(r LaunchRequest) StartRequest {
	return StartRequest{
		Spec: r.Spec, ID: r.ID, QEMU: l.cfg.QEMU[0], Accel: l.cfg.Accel, Args: l.ownArgs(r),
		Monitor: filepath.Join(l.dir(r.Spec.Name), monitorSocket), Serial: filepath.Join(l.dir(r.Spec.Name), serialLog),
	}
}

// User is whom a program runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // besides GID
}

// start starts a QEMU, by itself or by the node's Starter.
func (l *qemuLauncher) start(ctx context.Context, r LaunchRequest) (*process, error) {
	s := l.cfg.Starter
	if s == nil {
		return startProcess(l.cfg.Netns, l.cfg.User, l.argv(r), l.logFile(r.Spec.Name))
	}
	pid, err := s.Start(ctx, l.startRequest(r))
	if err != nil {
		return nil, err
	}
	ticks, _, err := procStat(pid)
	if err != nil {
		return nil, fmt.Errorf("QEMU ended at once: %w", err)
	}
	p, err := findProcess(pid, ticks, l.logFile(r.Spec.Name))
	if err == nil && p == nil {
		err = fmt.Errorf("QEMU (process %d) ended at once", pid)
	}
	return p, err
}

// logFile holds what the VM's QEMU has printed.
func (l *qemuLauncher) logFile(vm string) string {
	if s := l.cfg.Starter; s != nil {
		return s.Log(vm)
	}
	return filepath.Join(l.dir(vm), "qemu.log")
}

// forget tells the Starter that a QEMU has ended. Its bookkeeping is no reason to fail: what counts is that the process is gone.
func (l *qemuLauncher) forget(ctx context.Context, vm string) {
	if s := l.cfg.Starter; s != nil {
		if err := s.Forget(ctx, vm); err != nil {
			l.cfg.Log.Warn("a QEMU has ended, and its starter could not be told", "vm", vm, "starter", s.Name(), "err", err)
		}
	}
}

// startedBy is the name of what starts this node's QEMUs, empty for the node itself.
func (c *NodeConfig) startedBy() string {
	if c.Starter == nil {
		return ""
	}
	return c.Starter.Name()
}

// user is who QEMU runs as.
func (l *qemuLauncher) user(ctx context.Context) (uid, gid int, err error) {
	if s := l.cfg.Starter; s != nil {
		return s.User(ctx)
	}
	if u := l.cfg.User; u != nil {
		return int(u.UID), int(u.GID), nil
	}
	return os.Geteuid(), os.Getegid(), nil
}

// ownFolder makes the VM's folder anew for a QEMU of another user: the one before may have left in it what it liked, also links to files that only we
// may write.
func (l *qemuLauncher) ownFolder(s *Spec, uid int) error {
	if uid == os.Geteuid() {
		return nil
	}
	if err := errors.Join(os.RemoveAll(l.dir(s.Name)), os.RemoveAll(l.overlays(s))); err != nil {
		return err
	}
	return os.MkdirAll(l.cfg.RunDir, 0o755) //nolint:gosec // QEMU's user has to get through it
}

// handOver gives QEMU's user what QEMU opens. A QEMU that runs as this process does needs nothing.
func (l *qemuLauncher) handOver(r LaunchRequest, uid, gid int) error {
	if uid == os.Geteuid() {
		return nil
	}
	disks, _ := l.parts(r.Spec)
	var errs []error
	for _, d := range disks {
		errs = append(errs, os.Chown(d.Path, uid, gid))
	}
	for _, dir := range []string{l.dir(r.Spec.Name), l.overlays(r.Spec)} {
		errs = append(errs, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, gid)
		}))
	}
	return errors.Join(errs...)
}

// checkReach finds out whether QEMU's user can get to the files that it has to open: it needs to enter every folder on the way.
func (l *qemuLauncher) checkReach(s *Spec, uid, gid int) error {
	if uid == 0 || uid == os.Geteuid() {
		return nil
	}
	disks, _ := l.parts(s)
	folders := map[string]bool{l.cfg.RunDir: true}
	for _, d := range disks {
		folders[filepath.Dir(d.Path)] = true
	}
	var errs []error
	for _, d := range s.media(l.cfg.StorageDir) { // which stay their owner's
		folders[filepath.Dir(d.Path)] = true
		if err := reachable(d.Path, uid, gid, 4, "read", "o+r"); err != nil {
			errs = append(errs, err)
		}
	}
	seen := map[string]bool{}
	for f := range folders {
		for ; !seen[f]; f = filepath.Dir(f) {
			seen[f] = true
			if err := reachable(f, uid, gid, 1, "enter", "o+x"); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// reachable finds out whether a user has the permission bit may on a path.
func reachable(path string, uid, gid int, may os.FileMode, verb, chmod string) error {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // made when it is needed, or reported as a missing image's
	}
	if err != nil {
		return err
	}
	owner, group, ok := ownerOf(st)
	mode := st.Mode().Perm()
	switch {
	case !ok:
		return nil
	case owner == uid:
		mode >>= 6
	case group == gid:
		mode >>= 3
	}
	if mode&may == 0 {
		return fmt.Errorf("QEMU runs as user %s, who may not %s %s (mode %04o): chmod %s %s, or keep images elsewhere", strconv.Itoa(uid), verb, path, st.Mode().Perm(), chmod, path)
	}
	return nil
}
