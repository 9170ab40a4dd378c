package blockrepl

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// These are found when a VM's disks are declared.
var (
	// ErrInvalidDisk is matched by every *DiskError.
	ErrInvalidDisk = errors.New("blockrepl: invalid disk")
)

// These are why an image can't be used. The error is an *ImageError.
var (
	// ErrMissing: there is no file at this path.
	ErrMissing = errors.New("image is missing")

	// ErrMediumMissing: there is no read-only image at this path. It is not made.
	ErrMediumMissing = errors.New("read-only image is missing")

	// ErrExists: an image is to be created where there is one.
	ErrExists = errors.New("image exists already")

	// ErrNotRegular: the path is a folder, a socket or something else.
	ErrNotRegular = errors.New("image is neither a file nor a block device")

	// ErrReadOnly: the file can't be opened for writing.
	ErrReadOnly = errors.New("image can't be written")

	// ErrInUse: another process, most likely a QEMU, has the image open.
	ErrInUse = errors.New("image is in use")

	// ErrWrongFormat: the content isn't of the declared format.
	ErrWrongFormat = errors.New("image has the wrong format")

	// ErrWrongSize: the guest would see another size than declared.
	ErrWrongSize = errors.New("image has the wrong size")

	// ErrBackingChain: the image needs another image below it.
	ErrBackingChain = errors.New("image has a backing file")
)

// These are why a disk can't be copied to an NBD server. The error is an
// *ImageError whose Path is the export.
var (
	// ErrBadServer: this is no NBD server's address.
	ErrBadServer = errors.New("not an NBD server's address")

	// ErrNoServer: nobody answers there, or not as an NBD server does.
	ErrNoServer = errors.New("no NBD server answers there")

	// ErrNoExport: the server has no export of this name, or none for us.
	ErrNoExport = errors.New("the NBD server doesn't give this export")

	// ErrExportSize: the export is smaller than the disk.
	ErrExportSize = errors.New("the export is smaller than the disk")

	// ErrExportReadOnly: the export can't be written.
	ErrExportReadOnly = errors.New("the export can't be written")

	// ErrExportUnsafe: the server doesn't offer to make durable what was written.
	ErrExportUnsafe = errors.New("the export can't be flushed: nobody could tell when the backup is durable there")

	// ErrServerSilent: the server has left a request without an answer for
	// longer than BackupServer.Patience.
	ErrServerSilent = errors.New("the NBD server has stopped answering")

	// ErrScratchFull: what the guest overwrites while its disks are copied has
	// no room, or leaves hardly any to others.
	ErrScratchFull = errors.New("too little room for what the guest overwrites meanwhile")
)

// These are returned while disks are replicated.
var (
	// ErrNoBitmap is returned by a sync in mode Bitmap if a disk has no usable
	// bitmap: its QEMU was restarted, or it never was protected.
	ErrNoBitmap = errors.New("blockrepl: no bitmap")

	// ErrUnreachable is matched by every *ProbeError.
	ErrUnreachable = errors.New("blockrepl: peer's disk export is not reachable")

	// ErrStalled is matched by every *StallError.
	ErrStalled = errors.New("blockrepl: no progress")

	// ErrJobFailed is matched by every *JobError.
	ErrJobFailed = errors.New("blockrepl: resync failed")

	// ErrGuestRuns is returned by Switch if the guest isn't stopped.
	ErrGuestRuns = errors.New("blockrepl: guest runs")

	// ErrNotSynced is returned by Switch before a successful Sync, and after
	// a Switch or an Abort.
	ErrNotSynced = errors.New("blockrepl: disks are not in sync")

	// ErrAttached is returned by Sync if the disks are replicated already, or
	// a broken replication was not detached.
	ErrAttached = errors.New("blockrepl: disks are attached to a peer already")

	// ErrAborted is returned by a Sync or Switch that Abort has ended.
	ErrAborted = errors.New("blockrepl: aborted")

	// ErrOverlap is returned by a Sync or Switch while another one runs.
	ErrOverlap = errors.New("blockrepl: a sync or switch is under way")

	// ErrCommitFailed is returned for a promoted secondary whose overlays
	// QEMU could not commit: its image alone is not the guest's disk.
	ErrCommitFailed = errors.New("blockrepl: overlays could not be committed")
)

// DiskError says what is wrong with a declared disk.
type DiskError struct {
	Disk   string
	Reason string
}

func (e *DiskError) Error() string { return fmt.Sprintf("disk %q: %s", e.Disk, e.Reason) }

// Is makes every DiskError match ErrInvalidDisk.
func (e *DiskError) Is(target error) bool { return target == ErrInvalidDisk }

// ImageError says why an image can't be used and what to do about it.
type ImageError struct {
	Disk, Path string
	Reason     error  // one of the sentinels, or the system's error
	Detail     string // what was found
	Advice     string // what to do next
}

func (e *ImageError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "disk %s: %s: %v", e.Disk, e.Path, e.Reason)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Advice != "" {
		b.WriteString("; " + e.Advice)
	}
	return b.String()
}

func (e *ImageError) Unwrap() error { return e.Reason }

// ProbeError says that the peer doesn't serve disks where it should.
type ProbeError struct {
	Addr  string
	Cause error
}

func (e *ProbeError) Error() string {
	return fmt.Sprintf("blockrepl: peer's disk export at %s: %v", e.Addr, e.Cause)
}

func (e *ProbeError) Unwrap() error { return e.Cause }

// Is makes every ProbeError match ErrUnreachable.
func (e *ProbeError) Is(target error) bool { return target == ErrUnreachable }

// StallError says that a resync made no progress for a while, or that QEMU
// didn't even answer. The peer or the link is most likely gone; Abort frees it.
type StallError struct {
	Disk        string
	For         time.Duration
	Done, Total int64 // bytes
	Cause       error // set if QEMU didn't answer
}

func (e *StallError) Error() string {
	s := fmt.Sprintf("blockrepl: disk %s: no progress for %v at %d of %d bytes", e.Disk, e.For, e.Done, e.Total)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

func (e *StallError) Unwrap() error { return e.Cause }

// Is makes every StallError match ErrStalled.
func (e *StallError) Is(target error) bool { return target == ErrStalled }

// JobError is QEMU's word on a resync that failed.
type JobError struct {
	Disk   string
	Reason string
}

func (e *JobError) Error() string {
	return fmt.Sprintf("blockrepl: disk %s: resync failed: %s", e.Disk, e.Reason)
}

// Is makes every JobError match ErrJobFailed.
func (e *JobError) Is(target error) bool { return target == ErrJobFailed }
