package qmp

import "context"

// Job is an element of query-jobs: any long-running operation of QEMU.
type Job struct {
	ID              string `json:"id"`
	Type            string `json:"type"`   // "mirror", "backup", …
	Status          string `json:"status"` // "running", "ready", "pending", "concluded", …
	CurrentProgress int64  `json:"current-progress"`
	TotalProgress   int64  `json:"total-progress"`
	Error           string `json:"error"`
}

// QueryJobs lists all jobs.
func (c *Client) QueryJobs(ctx context.Context) ([]Job, error) {
	var l []Job
	err := c.Execute(ctx, "query-jobs", nil, &l)
	return l, err
}

// BlockJob is an element of query-block-jobs. Sizes are in bytes, Speed in
// bytes a second (0: unlimited).
type BlockJob struct {
	Device      string `json:"device"` // the job's id
	Type        string `json:"type"`
	Len         int64  `json:"len"`
	Offset      int64  `json:"offset"`
	Busy        bool   `json:"busy"`
	Paused      bool   `json:"paused"`
	Ready       bool   `json:"ready"`
	Speed       int64  `json:"speed"`
	IOStatus    string `json:"io-status"`
	Status      string `json:"status"`
	AutoDismiss bool   `json:"auto-dismiss"`
	Error       string `json:"error"`
}

// QueryBlockJobs lists the jobs that work on disks.
func (c *Client) QueryBlockJobs(ctx context.Context) ([]BlockJob, error) {
	var l []BlockJob
	err := c.Execute(ctx, "query-block-jobs", nil, &l)
	return l, err
}

// BlockdevMirror are the arguments of blockdev-mirror. Speed is in bytes a
// second, no limit if 0.
type BlockdevMirror struct {
	JobID         string `json:"job-id"`
	Device        string `json:"device"` // node
	Target        string `json:"target"` // node
	Sync          string `json:"sync"`   // "full", "top", "none"
	Speed         int64  `json:"speed,omitempty"`
	Granularity   int64  `json:"granularity,omitempty"`
	BufSize       int64  `json:"buf-size,omitempty"`
	CopyMode      string `json:"copy-mode,omitempty"` // "background" or "write-blocking"
	OnSourceError string `json:"on-source-error,omitempty"`
	OnTargetError string `json:"on-target-error,omitempty"`
	FilterNode    string `json:"filter-node-name,omitempty"`
	AutoDismiss   *bool  `json:"auto-dismiss,omitempty"`
}

// BlockdevMirror starts to copy a disk and to keep the copy equal. At the event
// BLOCK_JOB_READY they are.
func (c *Client) BlockdevMirror(ctx context.Context, m BlockdevMirror) error {
	return c.Execute(ctx, "blockdev-mirror", m, nil)
}

// BlockdevBackup are the arguments of blockdev-backup. Speed is in bytes a
// second, no limit if 0.
type BlockdevBackup struct {
	JobID         string `json:"job-id"`
	Device        string `json:"device"` // node
	Target        string `json:"target"` // node
	Sync          string `json:"sync"`   // "full", "bitmap", …
	Bitmap        string `json:"bitmap,omitempty"`
	BitmapMode    string `json:"bitmap-mode,omitempty"` // "always", "on-success", "never"
	Speed         int64  `json:"speed,omitempty"`
	OnSourceError string `json:"on-source-error,omitempty"`
	OnTargetError string `json:"on-target-error,omitempty"`
	FilterNode    string `json:"filter-node-name,omitempty"`
	AutoDismiss   *bool  `json:"auto-dismiss,omitempty"`
}

// BlockdevBackup copies a disk as it is now, or what a bitmap says of it. It
// ends with the event BLOCK_JOB_COMPLETED.
func (c *Client) BlockdevBackup(ctx context.Context, b BlockdevBackup) error {
	return c.Execute(ctx, "blockdev-backup", b, nil)
}

// BlockJobCancel ends a job. A mirror that is ready ends well by it (event
// BLOCK_JOB_COMPLETED), all others with BLOCK_JOB_CANCELLED.
func (c *Client) BlockJobCancel(ctx context.Context, job string, force bool) error {
	return c.Execute(ctx, "block-job-cancel", struct {
		Device string `json:"device"`
		Force  bool   `json:"force,omitempty"`
	}{job, force}, nil)
}

// BlockJobSetSpeed changes a job's limit in bytes a second; 0 lifts it.
func (c *Client) BlockJobSetSpeed(ctx context.Context, job string, speed int64) error {
	return c.Execute(ctx, "block-job-set-speed", struct {
		Device string `json:"device"`
		Speed  int64  `json:"speed"`
	}{job, speed}, nil)
}

// JobDismiss forgets a concluded job. Only needed for jobs that were made
// without automatic dismissal.
func (c *Client) JobDismiss(ctx context.Context, job string) error {
	return c.Execute(ctx, "job-dismiss", map[string]string{"id": job}, nil)
}

// JobCancel asks a job of any kind to end.
func (c *Client) JobCancel(ctx context.Context, job string) error {
	return c.Execute(ctx, "job-cancel", map[string]string{"id": job}, nil)
}
