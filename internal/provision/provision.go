// Package provision finds or fetches what the lab and the tests run: a QEMU
// that can do COLO, and a small Linux kernel with its modules for the guest.
//
// The machine's own QEMU is taken when it is fit. Otherwise, and always for the
// kernel, Debian's packages are downloaded and unpacked into a cache folder of
// the user and run from there: no root, no chroot, nothing changes in the
// machine's own package state. apt does the work with a state of its own: an
// empty list of installed packages makes it resolve the whole set, libraries
// and loader included, and it checks Debian's signatures as always.
//
// A package set becomes visible by one rename when it is unpacked completely,
// and stays as it is until Options.Renew; a filled cache needs neither network
// nor apt. An interrupted download is continued. Any number of processes may
// call Ensure at once: one works, under a file lock, the others wait for it.
package provision

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Environment variables. Those of Tools.Environ are read too: a value that is
// set goes before everything that Ensure would find.
const (
	MirrorVariable  = "COLOCTL_MIRROR"
	QEMUVariable    = "COLOCTL_QEMU"
	QEMUImgVariable = "COLOCTL_QEMU_IMG"
	KernelVariable  = "COLOCTL_KERNEL"
	ModulesVariable = "COLOCTL_MODULES"
	AccelVariable   = "COLOCTL_ACCEL"
)

// Source says where a QEMU comes from.
type Source string

// The values of Source.
const (
	SourceMachine     Source = "machine"
	SourceCache       Source = "cache"
	SourceEnvironment Source = "environment"
)

// Options of Ensure. The zero value is good.
type Options struct {
	CacheDir string    // default: coloctl in the user's cache folder
	Out      io.Writer // progress: one line that changes on a terminal, else plain lines; nil: none
	Mirror   string    // URL of a Debian mirror; default: $COLOCTL_MIRROR, else the one of the machine's apt
	Keyring  string    // keys the mirror must be signed with; default: those of Debian's archive
	Renew    bool      // look for newer packages even if the cache has a set
}

// Tools is what Ensure found.
type Tools struct {
	QEMU       []string // argv to put before QEMU's arguments
	QEMUImg    []string
	Kernel     string // the guest's kernel image
	ModulesDir string // its modules: …/lib/modules/RELEASE
	Version    string // of QEMU, as in "11.1.3"
	Accel      string // "kvm" if a guest really ran with it, else "tcg"
	Source     Source
}

// Environ returns the lines NAME=value that tests and scripts read.
func (t *Tools) Environ() []string {
	return []string{
		QEMUVariable + "=" + t.QEMU[0],
		QEMUImgVariable + "=" + t.QEMUImg[0],
		KernelVariable + "=" + t.Kernel,
		ModulesVariable + "=" + t.ModulesDir,
		AccelVariable + "=" + t.Accel,
	}
}

// Ensure returns the tools and fetches what is missing.
//
// QEMU and QEMUImg are one path each; for a QEMU in the cache it is that of a
// small script that starts it with its own loader and libraries. The error is
// one of this package's where a person can do something about it.
func Ensure(ctx context.Context, o Options) (*Tools, error) {
	dir, err := o.dir()
	if err != nil {
		return nil, err
	}
	c := newCache(dir, o)
	defer c.out.finish()

	t := &Tools{}
	if err := c.findQEMU(ctx, t); err != nil {
		return nil, err
	}
	if err := c.findKernel(ctx, t); err != nil {
		return nil, err
	}
	if t.Accel = os.Getenv(AccelVariable); t.Accel == "" {
		if t.Accel, err = c.accel(ctx, t); err != nil {
			return nil, err
		}
	}
	c.out.step("QEMU %s (%s, %s), guest kernel %s", t.Version, t.Source, t.Accel, filepath.Base(t.ModulesDir))
	return t, nil
}

// dir is the cache folder. Its paths go into scripts, so it is absolute.
func (o Options) dir() (string, error) {
	if o.CacheDir != "" {
		return filepath.Abs(o.CacheDir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: set XDG_CACHE_HOME", err)
	}
	return filepath.Join(dir, "coloctl"), nil
}

// Releases are those of Debian whose QEMU Release can fetch, oldest first.
var Releases = []string{"bookworm", "trixie", newest}

// Release returns the QEMU of a release of Debian, unpacked beside others whatever the machine has: fit or not, it is for trying out what each
// version can do. Nothing but QEMU, QEMUImg, Version and Source is set.
func Release(ctx context.Context, release string, o Options) (*Tools, error) {
	dir, err := o.dir()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(Releases, release) {
		return nil, fmt.Errorf("release %q: expected one of %v", release, Releases)
	}
	c := newCache(dir, o)
	if release != newest { // its libraries must not mix with a newer release's, so it has all of the cache for itself
		c = newCache(filepath.Join(dir, release), o)
		c.suites = release
	}
	defer c.out.finish()
	t := &Tools{}
	if err := c.fetchQEMU(ctx, qemuOf(release), t); err != nil {
		return nil, err
	}
	c.out.step("QEMU %s of Debian's %s", t.Version, release)
	return t, nil
}

func (c *cache) findQEMU(ctx context.Context, t *Tools) error {
	if path := os.Getenv(QEMUVariable); path != "" {
		img := os.Getenv(QEMUImgVariable)
		if img == "" {
			return fmt.Errorf("%s is set, %s is not: set both or none", QEMUVariable, QEMUImgVariable)
		}
		version, err := qemuVersion(ctx, path)
		if err != nil {
			return fmt.Errorf("%s: %w", QEMUVariable, err)
		}
		t.QEMU, t.QEMUImg, t.Version, t.Source = []string{path}, []string{img}, version, SourceEnvironment
		return nil
	}
	found, why := machineQEMU(ctx)
	if found != nil {
		*t = *found
		return nil
	}
	if _, ok := c.current(qemuSet); !ok {
		c.out.step("the machine's QEMU is not used: %v", why)
	}
	return c.fetchQEMU(ctx, qemuSet, t)
}

func (c *cache) fetchQEMU(ctx context.Context, s set, t *Tools) error {
	tree, err := c.ensure(ctx, s)
	if err != nil {
		return err
	}
	if t.QEMU, err = c.wrapper(tree, "qemu-system-x86_64", "-L", "usr/share/qemu", "-L", "usr/share/seabios"); err != nil {
		return err
	}
	if t.QEMUImg, err = c.wrapper(tree, "qemu-img"); err != nil {
		return err
	}
	t.Source = SourceCache
	t.Version, err = qemuVersion(ctx, t.QEMU[0])
	return err
}

func (c *cache) findKernel(ctx context.Context, t *Tools) error {
	t.Kernel, t.ModulesDir = os.Getenv(KernelVariable), os.Getenv(ModulesVariable)
	if t.Kernel != "" && t.ModulesDir != "" {
		return nil
	}
	if t.Kernel != "" || t.ModulesDir != "" {
		return fmt.Errorf("only one of %s and %s is set: set both or none", KernelVariable, ModulesVariable)
	}
	tree, err := c.ensure(ctx, kernelSet)
	if err != nil {
		return err
	}
	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	modules, err := filepath.Glob(filepath.Join(tree, "usr", "lib", "modules", "*"))
	if err != nil {
		return err
	}
	if len(kernels) != 1 || len(modules) != 1 {
		return fmt.Errorf("%s: expected one kernel with its modules, found %d and %d", tree, len(kernels), len(modules))
	}
	t.Kernel, t.ModulesDir = kernels[0], modules[0]
	return nil
}
