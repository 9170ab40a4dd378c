package colo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

// ErrImageMissing is returned by a launcher's Check when nothing but disk images is missing.
var ErrImageMissing = blockrepl.ErrMissing

// ErrNoFile is returned for a file that a VM needs besides its disks and that this node doesn't have.
var ErrNoFile = errors.New("file is missing")

// qemuLauncher starts QEMUs as processes of its own.
type qemuLauncher struct {
	cfg     NodeConfig
	images  blockrepl.Images
	host    netcompare.Host
	version string
	sandbox []string // of QEMU's command line; empty where it can't
	has     *hardware
	unfit   error // why this QEMU can't protect, though it has all that is needed

	noMPTCP error        // why connections can't use several links
	links   sync.Mutex   // held while the kernel is told about them
	up      []netip.Addr // links that work, as far as it is known
}

// launchTimeout bounds the time until a new QEMU answers.
const launchTimeout = 20 * time.Second

// sandbox is what a QEMU may not ask of the kernel: outdated calls, more privileges, other programs, and the scheduling of others.
var sandbox = []string{"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}

// dialQMP connects as soon as QEMU listens, and gives up at once when it has ended.
func dialQMP(ctx context.Context, p *process, path, name string) (*qmp.Client, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := qmp.Dial(ctx, path, &qmp.Options{Name: name})
		if err == nil {
			return c, nil
		}
		select {
		case <-p.done:
			return nil, fmt.Errorf("%s: QEMU ended at once (%w): %s", name, p.end, p.lastWords())
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: QEMU does not answer on %s: %w", name, path, err)
		case <-tick.C:
		}
	}
}

func (l *qemuLauncher) dir(vm string) string { return filepath.Join(l.cfg.RunDir, vm) }

// overlays is the folder of a VM's overlays.
func (l *qemuLauncher) overlays(s *Spec) string {
	if dir := cmp.Or(s.Overlays.Dir, l.cfg.OverlayDir); dir != "" {
		return filepath.Join(dir, s.Name)
	}
	return filepath.Join(l.dir(s.Name), overlayDir)
}

func (l *qemuLauncher) parts(s *Spec) ([]blockrepl.Disk, []netcompare.NIC) {
	return s.disks(l.cfg.StorageDir), s.nics(func(nic string) string { return netcompare.TapName(s.Name, nic) })
}

func (l *qemuLauncher) Check(ctx context.Context, s *Spec) error {
	disks, nics := l.parts(s)
	var missing []error
	errs := l.has.check(s)
	for _, d := range disks {
		if err := l.images.Check(ctx, d); errors.Is(err, blockrepl.ErrMissing) {
			missing = append(missing, err)
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	for _, d := range s.media(l.cfg.StorageDir) {
		if _, err := l.images.CheckMedium(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	for _, f := range []string{s.Boot.Kernel, s.Boot.Initrd} {
		if f == "" {
			continue
		}
		if _, err := os.Stat(f); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("boot %w: %w", ErrNoFile, err))
		} else if err != nil {
			errs = append(errs, fmt.Errorf("boot file: %w", err))
		}
	}
	if err := netcompare.Check(nics); err != nil {
		errs = append(errs, err)
	}
	if err := l.cfg.checkComparer(s); err != nil {
		errs = append(errs, err)
	}
	for _, n := range nics {
		if err := l.host.CheckBridge(ctx, n.Bridge); err != nil {
			errs = append(errs, fmt.Errorf("NIC %s: %w", n.Name, err))
		}
	}
	errs = append(errs, l.checkStarter(ctx, s))
	if err := errors.Join(errs...); err != nil {
		return errors.Join(append(errs, missingAsText(missing)...)...)
	}
	return errors.Join(missing...)
}

func (l *qemuLauncher) checkStarter(ctx context.Context, s *Spec) error {
	uid, gid, err := l.user(ctx)
	if err != nil {
		return err
	}
	err = l.checkReach(s, uid, gid)
	if l.cfg.Starter != nil {
		err = errors.Join(err, l.cfg.Starter.Check(ctx, l.startRequest(LaunchRequest{Spec: s})))
	}
	return err
}

// alsoMissing keeps a missing image in a message about worse things without letting the whole pass for ErrImageMissing.
type alsoMissing struct{ text string }

func (e *alsoMissing) Error() string { return e.text }

func missingAsText(missing []error) []error {
	out := make([]error, len(missing))
	for i, err := range missing {
		out[i] = &alsoMissing{err.Error()}
	}
	return out
}

// forNew is what a launcher's Check finds wrong with a VM whose missing images are going to be made.
func forNew(err error) error {
	if errors.Is(err, ErrImageMissing) {
		return nil
	}
	j, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	return errors.Join(slices.DeleteFunc(slices.Clone(j.Unwrap()), func(e error) bool { return errors.As(e, new(*alsoMissing)) })...)
}

func (l *qemuLauncher) CreateImages(ctx context.Context, s *Spec) (made []string, err error) {
	disks, _ := l.parts(s)
	for _, d := range disks {
		if _, err := os.Stat(d.Path); err == nil {
			continue
		}
		// Elsewhere a folder that is missing may be one that isn't mounted.
		if dir := filepath.Dir(d.Path); strings.HasPrefix(dir+"/", filepath.Clean(l.cfg.StorageDir)+"/") {
			if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a folder of images is shared with the administrator's tools
				return made, err
			}
		}
		if err := l.images.Create(ctx, d); err != nil {
			return made, err
		}
		made = append(made, d.Path)
	}
	return made, nil
}

func (l *qemuLauncher) Grow(ctx context.Context, s *Spec) error {
	disks, _ := l.parts(s)
	var errs []error
	for _, d := range disks {
		if _, err := os.Stat(d.Path); err == nil {
			errs = append(errs, l.images.Grow(ctx, d))
		}
	}
	return errors.Join(errs...)
}

// argv is QEMU's command line. Nothing in it depends on the role but the disks' layout and -incoming.
func (l *qemuLauncher) argv(r LaunchRequest) []string {
	s, dir := r.Spec, l.dir(r.Spec.Name)
	argv := append(slices.Clone(l.cfg.QEMU), "-name", "guest="+s.Name+",debug-threads=on", "-M", s.Machine, "-accel", l.cfg.Accel,
		"-m", strconv.FormatInt(int64(s.Memory)>>20, 10), "-smp", strconv.Itoa(s.VCPUs), "-nodefaults", "-no-user-config", "-display", "none",
		"-no-shutdown", "-pidfile", filepath.Join(dir, pidFile), "-serial", "file:"+filepath.Join(dir, serialLog))
	if s.CPU != "" {
		argv = append(argv, "-cpu", s.CPU)
	}
	if s.Boot.Kernel != "" {
		argv = append(argv, "-kernel", s.Boot.Kernel)
	}
	if s.Boot.Initrd != "" {
		argv = append(argv, "-initrd", s.Boot.Initrd)
	}
	if s.Boot.Append != "" {
		argv = append(argv, "-append", s.Boot.Append)
	}
	if !r.Standby {
		argv = append(argv, "-S")
	}
	return slices.Concat(argv, l.sandbox, l.colo(r))
}

// colo is the part of the command line that COLO and this package need.
func (l *qemuLauncher) colo(r LaunchRequest) []string {
	disks, nics := l.parts(r.Spec)
	dir := l.dir(r.Spec.Name)
	var argv []string
	for _, sock := range []string{qmpSocket, rescueSocket, monitorSocket, compareSocket} {
		argv = append(argv, "-qmp", "unix:"+filepath.Join(dir, sock)+",server=on,wait=off")
	}
	if r.Standby {
		argv = append(argv, blockrepl.StandbyArgs(disks, l.overlays(r.Spec))...)
		argv = append(argv, "-incoming", "defer")
	} else {
		argv = append(argv, blockrepl.PrimaryArgs(disks)...)
	}
	argv = append(argv, blockrepl.DeviceArgs(disks)...)
	argv = append(argv, blockrepl.MediaArgs(r.Spec.media(l.cfg.StorageDir))...)
	return append(argv, netcompare.Args(nics)...)
}

// Files in a VM's folder below RunDir.
const (
	qmpSocket     = "qmp"
	rescueSocket  = "rescue"
	scanSocket    = "scan"    // of a resync by checksum
	monitorSocket = "monitor" // for people: QEMU serves one client on each socket
	overlayDir    = "overlays"
	pidFile       = "pid" // QEMU's own
	serialLog     = "serial.log"
)

func (l *qemuLauncher) Launch(ctx context.Context, r LaunchRequest) (_ Copy, err error) {
	if err := l.endOrphan(ctx, r.Spec.Name); err != nil {
		return nil, err
	}
	disks, nics := l.parts(r.Spec)
	uid, gid, err := l.user(ctx)
	if err != nil {
		return nil, err
	}
	host := l.host
	host.TapUser, host.TapGroup = uint32(uid), uint32(gid)
	if err := l.ownFolder(r.Spec, uid); err != nil {
		return nil, err
	}
	for _, dir := range []string{l.dir(r.Spec.Name), l.overlays(r.Spec)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if r.Standby {
		if err := l.images.CreateOverlays(ctx, l.overlays(r.Spec), disks); err != nil {
			return nil, err
		}
		// What is found equal must stay so: nothing else writes to the images until a resync does.
		if err := blockrepl.MakeDurable(disks); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Clear(context.WithoutCancel(ctx), r.Spec))
		}
	}()
	for _, n := range nics {
		if err := host.EnsureTap(ctx, r.Spec.Name, n); err != nil {
			return nil, err
		}
		if err := l.host.Cut(ctx, n); err != nil {
			return nil, err
		}
	}
	if err := l.handOver(r, uid, gid); err != nil {
		return nil, err
	}
	p, err := l.start(ctx, r)
	if err != nil {
		return nil, err
	}
	c := l.newCopy(r.Spec, p)
	c.second.Store(r.Standby)
	if err := c.connect(ctx); err != nil {
		err = errors.Join(err, p.kill(context.WithoutCancel(ctx)))
		l.forget(context.WithoutCancel(ctx), r.Spec.Name)
		return nil, err
	}
	return c, nil
}

// ErrUnknownQEMU is returned by [NewNode] when a QEMU of a VM runs here of which the records know nothing: they were lost, or are others. Its guest may be the only one, and
// the peer's node takes it for well, so neither a second one nor its end is this node's to decide.
var ErrUnknownQEMU = errors.New("a QEMU runs here that the state file knows nothing of")

func (l *qemuLauncher) Clear(ctx context.Context, s *Spec) error {
	if err := l.endOrphan(ctx, s.Name); err != nil { // it has the overlays open, and would not be found without the file with its number
		return err
	}
	disks, nics := l.parts(s)
	dir := l.dir(s.Name)
	errs := []error{l.images.RemoveOverlays(l.overlays(s), disks), l.keeper(s.Name).Stop(ctx), os.RemoveAll(filepath.Join(dir, keyFolder)), l.dropLinks(ctx, s.Name)}
	for _, n := range nics {
		errs = append(errs, l.host.DeleteTap(ctx, s.Name, n), l.host.Unguard(ctx, n))
	}
	for _, sock := range []string{qmpSocket, rescueSocket, monitorSocket, compareSocket, scanSocket, pidFile} {
		if err := os.Remove(filepath.Join(dir, sock)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *qemuLauncher) Remove(ctx context.Context, s *Spec, images bool) error {
	if err := l.Clear(ctx, s); err != nil {
		return err
	}
	if images {
		disks, _ := l.parts(s)
		for _, d := range disks {
			if st, err := os.Stat(d.Path); err == nil && !st.Mode().IsRegular() {
				continue // a volume is its owner's to remove
			}
			if err := os.Remove(d.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return errors.Join(os.RemoveAll(l.overlays(s)), os.RemoveAll(l.dir(s.Name)))
}
