package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// set is a group of Debian packages that are fetched and unpacked together.
type set struct {
	name     string   // its name in the cache
	release  string   // of Debian, whose packages go before those of the other suites
	packages []string // as apt-get install takes them
	only     string   // just those whose name begins so; the others are not needed to run
	proof    string   // a file that a whole tree has
}

// The stable kernel is a third of the size of the one in backports, which
// comes with headers. What it depends on is for booting a Debian system.
var (
	qemuSet   = qemuOf(newest)
	kernelSet = set{
		name:     "kernel",
		release:  newest,
		packages: []string{"linux-image-cloud-amd64/trixie"},
		only:     "linux-image-",
		proof:    "boot",
	}
)

// newest is where Debian's newest QEMU for its stable release is; the stable release itself is read with it.
const newest = "trixie-backports"

// qemuOf is the QEMU of a release, with the libraries that it was built for.
func qemuOf(release string) set {
	return set{
		name: "qemu", release: release, packages: []string{"qemu-system-x86/" + release, "qemu-utils/" + release},
		proof: "usr/bin/qemu-system-x86_64",
	}
}

// stamp is the file NAME.json in the cache. It is written last, so a tree that
// it names is whole.
type stamp struct {
	Tree     string    `json:"tree"`
	Packages []debFile `json:"packages"`
}

// cache is the cache folder:
//
//	lock              held while something is fetched
//	bin/              scripts that start a program of a tree
//	trees/NAME-HASH/  an unpacked set
//	NAME.json         which tree is the current one of a set
//	apt/              apt's state and unfinished downloads
type cache struct {
	dir     string
	mirror  string
	suites  string // of Debian, that apt reads
	renew   bool
	keyring string
	out     *progress
	updated bool // apt's lists are of today
}

func newCache(dir string, o Options) *cache {
	mirror := o.Mirror
	if mirror == "" {
		mirror = os.Getenv(MirrorVariable)
	}
	keyring := o.Keyring
	if keyring == "" {
		keyring = debianKeyring
	}
	return &cache{dir: dir, mirror: mirror, suites: "trixie " + newest, renew: o.Renew, keyring: keyring, out: newProgress(o.Out)}
}

func (c *cache) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// ensure returns the root of the set's tree.
func (c *cache) ensure(ctx context.Context, s set) (string, error) {
	if tree, ok := c.current(s); ok && !c.renew {
		return tree, nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if tree, ok := c.current(s); ok && !c.renew {
		return tree, nil // somebody else made it while we waited
	}
	tree, err := c.fetch(ctx, s)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return tree, err
}

// current returns the set's tree if there is a whole one.
func (c *cache) current(s set) (string, bool) {
	text, err := os.ReadFile(c.path(s.name + ".json"))
	if err != nil {
		return "", false
	}
	var st stamp
	if json.Unmarshal(text, &st) != nil || st.Tree == "" {
		return "", false
	}
	tree := c.path("trees", st.Tree)
	if _, err := os.Stat(filepath.Join(tree, s.proof)); err != nil {
		return "", false
	}
	return tree, true
}

// lock waits for the cache's lock. The kernel frees it when its holder dies.
func (c *cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(c.path("lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	// A blocking flock could not be given up when ctx ends.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if !told {
			c.out.step("waiting: another process is filling %s", c.dir)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-tick.C:
		}
	}
}

// writeFile writes a file that appears whole or not at all.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
