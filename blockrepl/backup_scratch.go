package blockrepl

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The scratch images of a backup to a server share a file system with the guests' own
// images, as a rule. So QEMU itself must stop at a limit, also when no daemon watches
// it: each lies on a raw node of a fixed size, and the qcow2 above gets "no space" from
// that. The file is as long as that from the beginning, as a hole: a raw node can't be
// longer than its file.

// scratchReserve is what scratch images leave to others of their file system, at
// most; on a small one it is a twentieth.
const scratchReserve = 1 << 30

// scratchLeast is the least room for an image with which a backup begins.
const scratchLeast = 1 << 20

// CheckScratch tells whether a file system has room for scratch images.
func CheckScratch(dir string) error {
	_, err := scratchRoom(dir)
	return err
}

// scratchRoom is what scratch images may take there.
func scratchRoom(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	return scratchFits(dir, fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)) //nolint:gosec // a size
}

func scratchFits(dir string, free, all uint64) (room int64, err error) {
	reserve := min(scratchReserve, all/20)
	if free < reserve {
		return 0, fmt.Errorf("%s: %w: %d MiB are free, of which %d MiB are left to others", dir, ErrScratchFull, free>>20, reserve>>20)
	}
	return int64(free - reserve), nil //nolint:gosec // a size
}

// scratchNeed is the size of a scratch image of which everything was written: what
// qcow2 notes of 64 KiB takes some ten bytes.
func (d Disk) scratchNeed() int64 { return d.Size + d.Size/1024 + 4<<20 }

// boundScratch makes the scratch files as long as they may become. Their lengths add up
// to the room that there is now, shared by the disks' sizes, or to what they need.
func (o BackupOptions) boundScratch(disks []Disk) error {
	var total float64
	for _, d := range disks {
		total += float64(d.scratchNeed())
	}
	limits := make([]int64, len(disks))
	for i, d := range disks { // all of them before the first takes any
		dir := filepath.Dir(o.Targets[d.Name])
		room, err := scratchRoom(dir)
		if err != nil {
			return err
		}
		if o.scratch > 0 {
			room = min(room, o.scratch)
		}
		limits[i] = min(d.scratchNeed(), int64(float64(room)*(float64(d.scratchNeed())/total))) / HashBlock * HashBlock
		if limits[i] < scratchLeast {
			return fmt.Errorf("%s: %w: %d KiB for disk %s", dir, ErrScratchFull, limits[i]>>10, d.Name)
		}
	}
	for i, d := range disks {
		if err := os.Truncate(o.Targets[d.Name], limits[i]); err != nil {
			return err
		}
	}
	return nil
}

// scratchNode is a scratch image that can't become longer than its file is. Nothing of it
// is flushed: a checkpoint, which flushes all that QEMU has open, need not wait for what
// nobody reads after a crash.
func scratchNode(d Disk, path string) (map[string]any, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"driver": QCOW2, "node-name": d.backupTarget(), "discard": unmap, "detect-zeroes": unmap, "cache": map[string]bool{"no-flush": true}, "backing": nil,
		"file": map[string]any{
			"driver": Raw, "node-name": "bkroom-" + d.Name, "size": st.Size(), "discard": unmap,
			"file": fileNode{Driver: "file", NodeName: "bkfile-" + d.Name, Filename: path, Discard: unmap},
		},
	}, nil
}
