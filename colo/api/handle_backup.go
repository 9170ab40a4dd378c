package api

import (
	"context"
	"net/http"

	"github.com/coloctl/coloctl/colo"
)

// BackupRequest is the body of a backup.
type BackupRequest struct {
	Request
	colo.BackupOptions
}

// ExportRequest is the body of an export.
type ExportRequest struct {
	Request
	colo.ExportOptions
}

// RestoreRequest is the body of a restore.
type RestoreRequest struct {
	Request
	colo.RestoreOptions
}

// ImageRequest is the body of a request for an image.
type ImageRequest struct {
	Request
	colo.ImageRequest
}

// ResizeRequest is the body of a resize.
type ResizeRequest struct {
	Request
	Size colo.Size `json:"size"`
}

// DiskList is a VM's disks on one node.
type DiskList struct {
	Disks []colo.DiskInfo `json:"disks"`
}

func (s *Server) backup(w http.ResponseWriter, r *request) error {
	var in BackupRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	foresee := checked(func(ctx context.Context) error { return s.opts.Node.CheckBackup(ctx, r.vm, in.BackupOptions) })
	return s.action(w, r, "backup", in.Reason, foresee, func(ctx context.Context) error {
		_, err := s.opts.Node.Backup(ctx, r.vm, in.BackupOptions)
		return err
	})
}

func (s *Server) export(w http.ResponseWriter, r *request) error {
	var in ExportRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	foresee := checked(func(context.Context) error { return s.opts.Node.CheckExport(r.vm, in.ExportOptions) })
	return s.action(w, r, "export", in.Reason, foresee, func(ctx context.Context) error { return s.opts.Node.Export(ctx, r.vm, in.ExportOptions) })
}

func (s *Server) restore(w http.ResponseWriter, r *request) error {
	var in RestoreRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckRestore(r.Context(), in.RestoreOptions) }); done {
		return err
	}
	spec, err := s.opts.Node.Restore(r.Context(), in.RestoreOptions)
	if err != nil {
		return err
	}
	r.vm = spec.Name
	s.remark(r, "restore", in.Reason)
	w.Header().Set("Location", "/v1/vms/"+spec.Name)
	return s.replyVM(w, r.Context(), spec.Name, http.StatusCreated)
}

func (s *Server) makeImage(w http.ResponseWriter, r *request) error {
	var in ImageRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckImage(r.Context(), in.ImageRequest) }); done {
		return err
	}
	made, err := s.opts.Node.MakeImage(r.Context(), in.ImageRequest)
	if err != nil {
		return err
	}
	reply(w, http.StatusCreated, made)
	return nil
}

func (s *Server) listDisks(w http.ResponseWriter, r *request) error {
	disks, err := s.opts.Node.Disks(r.Context(), r.vm)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, DiskList{disks})
	return nil
}

func (s *Server) diskResize(w http.ResponseWriter, r *request) error {
	var in ResizeRequest
	if err := bodyJSON(r.Request, &in, false); err != nil {
		return err
	}
	disk := r.PathValue("disk")
	if done, err := dryRun(w, r, func() error { return s.opts.Node.CheckResize(r.Context(), r.vm, disk, in.Size) }); done {
		return err
	}
	if err := s.opts.Node.Resize(r.Context(), r.vm, disk, in.Size); err != nil {
		return err
	}
	s.remark(r, "disk "+disk+" resize", in.Reason)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
