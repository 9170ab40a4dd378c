package provision

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// unpackedRatio is how much larger than its packages a tree is, at most (seen:
// 4.6), and so a guess of the space that is needed.
const unpackedRatio = 6

// fetch makes the set's tree and its stamp. The caller holds the lock.
func (c *cache) fetch(ctx context.Context, s set) (string, error) {
	if err := c.prepareApt(ctx); err != nil {
		return "", err
	}
	files, err := c.resolve(ctx, s)
	if err != nil {
		return "", err
	}
	list := sha256.New()
	var size int64
	for _, f := range files {
		fmt.Fprintln(list, f.Name, f.SHA256)
		size += f.Size
	}
	st := stamp{Tree: s.name + "-" + hex.EncodeToString(list.Sum(nil)[:6]), Packages: files}
	tree := c.path("trees", st.Tree)
	switch _, err := os.Stat(tree); {
	case errors.Is(err, fs.ErrNotExist):
		if err := c.checkSpace(size * (1 + unpackedRatio)); err != nil {
			return "", err
		}
		if err := c.download(ctx, s, files, size); err != nil {
			return "", err
		}
		if err := c.unpack(ctx, s, files, tree); err != nil {
			return "", err
		}
	case err != nil:
		return "", err
	}
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return "", err
	}
	if err := writeFile(c.path(s.name+".json"), append(text, '\n'), 0o644); err != nil {
		return "", err
	}
	if _, ok := c.current(s); !ok {
		return "", fmt.Errorf("package set %s has no %s", s.name, s.proof)
	}
	return tree, nil
}

func (c *cache) checkSpace(need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", c.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%w: %s has %d MB, about %d MB are needed", ErrNoSpace, c.dir, free>>20, need>>20)
	}
	return nil
}

// download fetches what is missing; apt goes on where it was interrupted.
func (c *cache) download(ctx context.Context, s set, files []debFile, size int64) error {
	missing := false
	for _, f := range files {
		path := c.archive(f)
		switch _, err := os.Stat(path); {
		case errors.Is(err, fs.ErrNotExist):
			missing = true
			continue
		case err != nil:
			return err
		}
		// apt would take it by its size, but a crash can leave a file empty inside.
		if checkFile(path, f) != nil {
			missing = true
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	if missing {
		c.out.step("downloading %s: %d packages, %d MB", s.name, len(files), size>>20)
		args := append([]string{"install", "--download-only", "-t", s.release, "-o", "Dir::State::status=" + c.path("apt", "status-"+s.name)}, s.packages...)
		if _, err := c.apt(ctx, "downloading "+s.name, args...); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := checkFile(c.archive(f), f); err != nil {
			return err
		}
	}
	return nil
}

// checkFile compares a file with what the signed list says.
func checkFile(path string, f debFile) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("%w: %s has SHA-256 %s, the signed list says %s", ErrSignature, f.Name, got, f.SHA256)
	}
	return nil
}

// unpack makes tree from the files and then drops them.
func (c *cache) unpack(ctx context.Context, s set, files []debFile, tree string) error {
	c.out.step("unpacking %s", s.name)
	trees := filepath.Dir(tree)
	// Left over from a run that was killed; we hold the lock.
	old, err := filepath.Glob(filepath.Join(trees, ".new-*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(trees, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(trees, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // gone already when all went well

	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, f := range files {
		group.Go(func() error {
			report, err := command(ctx, "dpkg-deb", "-x", c.archive(f), temp).CombinedOutput()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil && strings.Contains(string(report), "No space left on device") {
				err = ErrNoSpace
			}
			if err != nil {
				return fmt.Errorf("unpack %s: %w: %s", f.Name, err, strings.TrimSpace(string(report)))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	// The stamp is synced; what it vouches for must not be younger.
	if err := syncFileSystem(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, tree); err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(c.archive(f)); err != nil {
			return err
		}
	}
	return nil
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
