package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
	"github.com/coloctl/coloctl/state"
)

// TestDocumentHasTheRoutes compares both ways: path, method, role and parameters.
func TestDocumentHasTheRoutes(t *testing.T) {
	doc, _ := loadDocument(t)
	described := map[string]string{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			var params []string
			for _, p := range op.Parameters {
				if p.Value.In == "query" {
					params = append(params, p.Value.Name)
				}
			}
			slices.Sort(params)
			nodes, _ := op.Extensions["x-nodes-too"].(bool)
			described[method+" "+path] = fmt.Sprintf("role %v, nodes too %v, query %v", op.Extensions["x-role"], nodes, params)
			if op.Summary == "" || op.OperationID == "" || op.Responses.Default() == nil {
				t.Errorf("%s %s lacks a summary, an id or the answer in case of errors", method, path)
			}
			if body := op.RequestBody; (method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch) != (body != nil) {
				t.Errorf("%s %s: body %v", method, path, body)
			}
		}
	}
	have := map[string]string{}
	for _, rt := range routes {
		params := slices.Sorted(slices.Values(rt.query))
		if params == nil {
			params = []string{}
		}
		have[rt.String()] = fmt.Sprintf("role %v, nodes too %v, query %v", rt.least, rt.nodesToo, params)
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if described[name] != have[name] {
			t.Errorf("%s: %s; the document says: %s", name, have[name], described[name])
		}
	}
	for name := range described {
		if have[name] == "" {
			t.Errorf("%s is in the document only", name)
		}
	}
}

// documented are the types that the schemas describe.
var documented = map[string]any{
	"ErrorBody": ErrorBody{}, "Refusal": Refusal{}, "FieldBody": FieldBody{}, "Difference": Difference{}, "Health": Health{}, "HealthItem": HealthItem{},
	"NodeStatus": NodeStatus{}, "Capacity": colo.Capacity{}, "Limits": colo.Limits{}, "Reservation": colo.Reservation{}, "Caller": Caller{}, "NodeInfo": colo.NodeInfo{}, "Link": colo.Link{}, "PeerStatus": colo.PeerStatus{},
	"LinkStatus": colo.LinkStatus{}, "Replication": colo.Replication{}, "VMList": VMList{}, "VM": VM{}, "Spec": colo.Spec{}, "Boot": colo.Boot{}, "DiskSpec": colo.DiskSpec{}, "NICSpec": colo.NICSpec{},
	"ProtectionSpec": colo.ProtectionSpec{}, "Status": colo.Status{}, "Verdict": colo.Verdict{}, "CheckpointStats": colo.CheckpointStats{},
	"DiskStatus": colo.DiskStatus{}, "PlanStatus": colo.PlanStatus{}, "Progress": colo.Progress{}, "SyncResult": colo.SyncResult{}, "History": History{},
	"Entry": state.Entry{}, "NumberedEvent": NumberedEvent{}, "Gap": Gap{}, "Request": Request{}, "StopRequest": StopRequest{}, "ResyncRequest": ResyncRequest{},
	"FailoverRequest": FailoverRequest{}, "DryRun": DryRun{}, "Preview": colo.Preview{}, "OperationList": OperationList{}, "Operation": Operation{}, "OpStep": OpStep{},
	"PrepareRequest": colo.PrepareRequest{}, "PrepareReply": colo.PrepareReply{}, "Endpoint": colo.Endpoint{}, "NICPorts": colo.NICPorts{}, "Path": colo.Path{}, "PeerVM": colo.PeerVM{},
	"CheckpointRequest": colo.CheckpointRequest{}, "OverlaySpec": colo.OverlaySpec{}, "OverlayStatus": colo.OverlayStatus{}, "SumsRequest": colo.SumsRequest{}, "SumsReply": colo.SumsReply{}, "TuneRequest": TuneRequest{},
	"VerifyRequest": VerifyRequest{}, "Verify": state.Verify{},
	"DiskList": DiskList{}, "DiskInfo": colo.DiskInfo{}, "ResizeRequest": ResizeRequest{}, "BackupRequest": BackupRequest{}, "ExportRequest": ExportRequest{},
	"RestoreRequest": RestoreRequest{}, "ImageRequest": ImageRequest{}, "Image": colo.Image{},
	"Record": arbiter.Record{}, "DropRequest": colo.DropRequest{}, "StartRequest": StartRequest{}, "Report": colo.Report{}, "ArbiterMessage": fence.Message{}, "ArbiterReply": fence.Reply{},
}

// TestDocumentHasTheFields compares the schemas with the types: each field is described, with a fitting type, and required where it is always there.
func TestDocumentHasTheFields(t *testing.T) {
	doc, _ := loadDocument(t)
	for name, v := range documented {
		ref := doc.Components.Schemas[name]
		if ref == nil {
			t.Errorf("%s is not in the document", name)
			continue
		}
		fields := map[string]reflect.StructField{}
		jsonFields(reflect.TypeOf(v), fields)
		for field, f := range fields {
			p := ref.Value.Properties[field]
			if p == nil {
				t.Errorf("%s.%s is not in the document", name, field)
				continue
			}
			if want := jsonType(f.Type); want != "" && p.Value.Type != nil && !p.Value.Type.Includes(want) {
				t.Errorf("%s.%s is of the type %v, in the document %v", name, field, want, p.Value.Type)
			}
		}
		for field := range ref.Value.Properties {
			if _, ok := fields[field]; !ok {
				t.Errorf("%s.%s is in the document only", name, field)
			}
		}
		for _, field := range ref.Value.Required {
			if f, ok := fields[field]; ok && strings.Contains(f.Tag.Get("json"), "omit") {
				t.Errorf("%s.%s may be left away, the document requires it", name, field)
			}
		}
	}
	for name := range doc.Components.Schemas {
		if _, ok := documented[name]; !ok && name != "State" && name != "BothStatus" {
			t.Errorf("schema %s belongs to no type", name)
		}
	}
}

func jsonFields(typ reflect.Type, out map[string]reflect.StructField) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			jsonFields(f.Type, out)
		case name != "" && name != "-":
			out[name] = f
		}
	}
}

// jsonType is the JSON type of a Go type that has only one.
func jsonType(typ reflect.Type) string {
	if typ == reflect.TypeFor[time.Time]() {
		return "string"
	}
	if typ == reflect.TypeFor[colo.Duration]() {
		return "number"
	}
	if _, own := reflect.New(typ).Interface().(json.Unmarshaler); own {
		return ""
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return jsonType(typ.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			return "string" // base64
		}
		return "array"
	case reflect.Struct, reflect.Map:
		if typ.PkgPath() == "net/netip" {
			return "string"
		}
		return "object"
	case reflect.Float64:
		return "number"
	default:
		return "integer"
	}
}

func TestDocumentIsServed(t *testing.T) {
	s := newSite(t)
	status, text := raw(t, s.admin("n1"), "GET", "/openapi.json", "", "")
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	got, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if err != nil || got.OpenAPI != "3.1.0" || got.Paths.Len() < 20 {
		t.Errorf("%v", err)
	}
}
