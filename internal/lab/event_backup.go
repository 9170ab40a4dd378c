package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// backupLimit makes a backup last for some seconds, in bytes a second.
const backupLimit = 12 << 20

// backups: a full one while the guest writes, then one of what was written since, then both are restored. Nobody changes a role, and each has every
// write that was acknowledged before it began.
var backups = undisturbed("a backup is made while the clients write, then one of what has changed", func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	n := r.Lab.Node(name)
	full, next := n.path("full"), n.path("next")
	var bytes [2]int64
	for i, o := range []colo.BackupOptions{{Dir: full, Limit: backupLimit}, {Dir: next, Since: full}} {
		acked := r.Clients.Writes.Acked()
		begun := time.Now()
		op, err := n.Client.Backup(ctx, VM, api.BackupRequest{BackupOptions: o})
		if err := await(ctx, n, op, err); err != nil {
			return err
		}
		took := time.Since(begun)
		m, err := colo.ReadManifest(o.Dir)
		if err != nil {
			return err
		}
		bytes[i] = m.Bytes
		lost, err := r.lostInBackup(ctx, n, o.Dir, acked)
		if err != nil {
			return err
		}
		if lost > 0 {
			return fmt.Errorf("%d of %d writes that were acknowledged before the backup are not in it", lost, acked)
		}
		r.Tell.Say("%s copied in %.1f s; restored, it has all %d writes from before", size(m.Bytes), took.Seconds(), acked)
	}
	if bytes[1] == 0 || bytes[1] >= bytes[0]/2 {
		return fmt.Errorf("what was written since the full backup of %d bytes is %d bytes", bytes[0], bytes[1])
	}
	return r.protectedStill(ctx)
})

// lostInBackup restores a backup as another VM on the other node's storage and counts which of the first writes its disk lacks.
func (r *Run) lostInBackup(ctx context.Context, n *Node, dir string, acked int) (int, error) {
	name := "from-" + filepath.Base(dir)
	made, err := n.Client.Restore(ctx, api.RestoreRequest{RestoreOptions: colo.RestoreOptions{Dir: dir, Name: name}})
	if err != nil {
		return 0, err
	}
	image := n.path("disks", made.Spec.Disks[0].File)
	lost, err := r.missing(ctx, image, acked)
	if err == nil {
		err = n.Client.Delete(ctx, name, api.DeleteRequest{Images: true})
	}
	if err == nil {
		if _, e := os.Stat(image); e == nil {
			err = fmt.Errorf("%s is left", image)
		}
	}
	return lost, err
}
