package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// A backup is a copy of all disks as they were at one moment, the same for all,
// made while the guest writes: before it overwrites something that is not copied
// yet, QEMU copies that. The job sits above the quorum, so it works while COLO
// runs, and outlives the loss of either half; the peer takes no part in it.
//
// Each backup begins a bitmap in its first moment, and keeps it when it has
// succeeded, for one that copies only what was written since. The bitmap ends with
// its QEMU: after a failover there is none.

// BackupOptions say what is copied whereto.
type BackupOptions struct {
	ID string // names this backup's bitmap: [a-z0-9-]{1,64}; empty if none will be based on it
	// Since is the ID of an earlier backup: only what was written since is copied. Empty copies all.
	Since string
	// Targets are qcow2 images by disk, made by [Images.CreateBackup]. With a Server they are scratch images, which keep what the guest overwrites
	// meanwhile: their names are removed as soon as QEMU has them open, so that nothing of them is left whatever happens.
	Targets map[string]string
	// Server, if not nil, is what the disks are copied to. Since and ID mean nothing then.
	Server *BackupServer
	// Socket is the path of a unix socket that this QEMU may listen on meanwhile; for a Server only.
	Socket     string
	Speed      int64 // bytes a second for each disk; 0 is no limit
	OnProgress func(done, total int64)
	OnLeft     func(error) // may be nil; called when its end fails for the first time. It is tried again until QEMU is gone

	scratch int64 // what scratch images may take together; 0 is what there is
}

func (d Disk) backup() string       { return "backup-" + d.Name }
func (d Disk) backupTarget() string { return "bktgt-" + d.Name }
func (d Disk) backupFilter() string { return "bkflt-" + d.Name }

func backupBitmap(id string) string { return "backup-" + id }

// backupLook is how often a backup's jobs are asked how far they are.
const backupLook = 100 * time.Millisecond

// backupAgain is how often the end of one is tried again.
const backupAgain = time.Second

// Backup makes one and returns when it is written to its targets, which the
// caller must flush. Nothing of it is left in QEMU after an error, unless the connection
// to that has ended, and of an earlier one that was interrupted by the daemon's end neither. While it runs, no resync
// may. With Since it returns ErrNoBitmap if this QEMU has no record from there on.
func Backup(ctx context.Context, c *qmp.Client, disks []Disk, o BackupOptions) (err error) {
	if err := EndBackup(ctx, c, disks); err != nil {
		return err
	}
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if !g.has(d.colo()) {
			return fmt.Errorf("blockrepl: this QEMU has no disk %s", d.Name)
		}
		if b, ok := g.bitmap(d.colo(), backupBitmap(o.Since)); o.Since != "" && (!ok || b.Inconsistent) {
			return fmt.Errorf("%w of what was written to disk %s since backup %s", ErrNoBitmap, d.Name, o.Since)
		}
	}
	exports, err := o.openExports(ctx, disks)
	if err != nil {
		return err
	}
	defer exports.Close()
	defer func() {
		ended := err
		err = errors.Join(err, o.end(context.WithoutCancel(ctx), c, disks))
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
		defer cancel()
		switch {
		case o.ID == "":
		case ended != nil: // those before stay good
			err = errors.Join(err, dropBackupBitmaps(cctx, c, disks, func(name string) bool { return name == backupBitmap(o.ID) }))
		default:
			err = errors.Join(err, dropBackupBitmaps(cctx, c, disks, func(name string) bool { return name != backupBitmap(o.ID) }))
		}
	}()
	for _, d := range disks {
		node, err := o.backupTargetNode(d)
		if err != nil {
			return err
		}
		if err := c.BlockdevAdd(ctx, node); err != nil {
			return err
		}
		if o.Server != nil {
			if err := os.Remove(o.Targets[d.Name]); err != nil {
				return err
			}
		}
	}
	if err := transaction(ctx, c, disks, o.actions); err != nil {
		if refused(err) && strings.Contains(err.Error(), "on-cbw-error") { // without it a failure of the target is one of the guest's write
			err = &qmp.UnsupportedError{Feature: "backups whose failure is not the guest's (blockdev-backup on-cbw-error)", MinQEMU: "10.1", Cause: err}
		}
		return err
	}
	if o.Server != nil {
		return o.serve(ctx, c, disks, exports)
	}
	return o.wait(ctx, c, disks)
}

// actions begin it: no write of the guest comes in between.
func (o BackupOptions) actions(d Disk) []action {
	job := backupJob{
		BlockdevBackup: qmp.BlockdevBackup{
			JobID: d.backup(), Device: d.colo(), Target: d.backupTarget(), Sync: "full", Speed: o.Speed, FilterNode: d.backupFilter(),
			OnSourceError: "report", OnTargetError: "report", AutoDismiss: new(bool),
		},
		OnCBWError: "break-snapshot", // of two evils: the guest's write must not fail
	}
	switch {
	case o.Server != nil: // what the guest overwrites, and no more
		job.Sync, job.Speed = "none", 0
	case o.Since != "":
		job.Sync, job.Bitmap, job.BitmapMode = "bitmap", backupBitmap(o.Since), "never"
	}
	begin := []action{{"blockdev-backup", job}}
	if o.ID != "" {
		begin = append(begin, action{"block-dirty-bitmap-add", qmp.BlockDirtyBitmapAdd{Node: d.colo(), Name: backupBitmap(o.ID), Granularity: granularity}})
	}
	return begin
}

// backupTargetNode doesn't open what the image is based on: only whole clusters
// are written.
func (o BackupOptions) backupTargetNode(d Disk) (any, error) {
	if o.Server != nil {
		return scratchNode(d, o.Targets[d.Name])
	}
	return struct {
		Driver       string   `json:"driver"`
		NodeName     string   `json:"node-name"`
		Discard      string   `json:"discard"`
		DetectZeroes string   `json:"detect-zeroes"`
		Backing      *string  `json:"backing"`
		File         fileNode `json:"file"`
	}{QCOW2, d.backupTarget(), unmap, unmap, nil, fileNode{Driver: "file", NodeName: "bkfile-" + d.Name, Filename: o.Targets[d.Name], Discard: unmap}}, nil
}

func (o BackupOptions) wait(ctx context.Context, c *qmp.Client, disks []Disk) error {
	tick := time.NewTicker(backupLook)
	defer tick.Stop()
	for {
		jobs, err := backupJobs(ctx, c, disks)
		if err != nil {
			return err
		}
		var done, total int64
		left := len(disks)
		for _, j := range jobs {
			if j.Status == "concluded" {
				left--
			}
			done, total = done+j.CurrentProgress, total+j.TotalProgress
		}
		if o.OnProgress != nil {
			o.OnProgress(done, total)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errBackupEnded is returned for a backup whose jobs aren't there any more.
var errBackupEnded = errors.New("blockrepl: somebody else has ended the backup")

// backupJobs returns the disks' jobs, in their order. That one has failed, or is not there, is an error.
func backupJobs(ctx context.Context, c *qmp.Client, disks []Disk) ([]qmp.Job, error) {
	all, err := c.QueryJobs(ctx)
	if err != nil {
		return nil, err
	}
	var jobs []qmp.Job
	for _, d := range disks {
		i := slices.IndexFunc(all, func(j qmp.Job) bool { return j.ID == d.backup() })
		switch {
		case i < 0:
			continue
		case all[i].Error != "":
			return nil, fmt.Errorf("blockrepl: backup of disk %s: %s", d.Name, all[i].Error)
		}
		jobs = append(jobs, all[i])
	}
	if len(jobs) < len(disks) {
		return nil, errBackupEnded
	}
	return jobs, nil
}

// end is EndBackup until that has succeeded or the connection to QEMU has ended: as long
// as a job runs, what the guest overwrites takes room, and nobody else would end it.
func (o BackupOptions) end(ctx context.Context, c *qmp.Client, disks []Disk) error {
	again := time.NewTicker(backupAgain)
	defer again.Stop()
	for tell := o.OnLeft; ; {
		cctx, cancel := context.WithTimeout(ctx, answerWithin)
		err := EndBackup(cctx, c, disks)
		cancel()
		if err == nil || c.Err() != nil {
			return err
		}
		if tell != nil {
			tell(err)
			tell = nil
		}
		select {
		case <-c.Done():
			return err
		case <-again.C:
		}
	}
}

// EndBackup ends what there is of a backup in this QEMU: its exports, jobs and
// targets, not the bitmaps. The jobs are ended also where the exports can't be.
func EndBackup(ctx context.Context, c *qmp.Client, disks []Disk) error {
	ended := endBackupExports(ctx, c, disks)
	if err := errors.Join(ended, endBackupJobs(ctx, c, disks)); err != nil {
		return err
	}
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range disks {
		if g.has(d.backupTarget()) {
			errs = append(errs, c.BlockdevDel(ctx, d.backupTarget()))
		}
	}
	return errors.Join(errs...)
}

// endBackupJobs returns when the jobs are gone.
func endBackupJobs(ctx context.Context, c *qmp.Client, disks []Disk) error {
	tick := time.NewTicker(backupLook)
	defer tick.Stop()
	for {
		jobs, err := c.QueryJobs(ctx)
		if err != nil {
			return err
		}
		left := false
		var errs []error
		for _, d := range disks {
			for _, j := range jobs {
				switch {
				case j.ID != d.backup():
				case j.Status == "concluded":
					errs = append(errs, c.JobDismiss(ctx, j.ID))
				default: // it may be ending already
					left = true
					if err := c.JobCancel(ctx, j.ID); err != nil && !refused(err) {
						errs = append(errs, err)
					}
				}
			}
		}
		if err := errors.Join(errs...); err != nil || !left {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// dropBackupBitmaps removes some of them.
func dropBackupBitmaps(ctx context.Context, c *qmp.Client, disks []Disk, which func(name string) bool) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range disks {
		for _, b := range g[d.colo()].DirtyBitmaps {
			if strings.HasPrefix(b.Name, backupBitmap("")) && which(b.Name) {
				errs = append(errs, c.BlockDirtyBitmapRemove(ctx, d.colo(), b.Name))
			}
		}
	}
	return errors.Join(errs...)
}
