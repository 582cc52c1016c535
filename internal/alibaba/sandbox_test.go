package alibaba

import (
	"bytes"
	"hash/crc64"
	"io"
	"strings"
	"testing"

	"remaster/internal/sandbox"
	"remaster/pkg/importer"
)

// rehearse starts a sandbox, which verifies every signature, with a bucket.
func rehearse(t *testing.T, o sandbox.Options) (*sandbox.Sandbox, Config) {
	t.Helper()
	o.Accounts = []sandbox.Account{{AccessKeyID: testID, Secret: testSecret}}
	sb := sandbox.New(o)
	if err := sb.Start("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sb.Close() })
	if err := sb.OSS.CreateBucket("bucket", "cn-hangzhou"); err != nil {
		t.Fatal(err)
	}
	return sb, Config{Region: "cn-hangzhou", OSSEndpoint: sb.OSSEndpoint(), ECSEndpoint: sb.ECSEndpoint(), STSEndpoint: sb.STSEndpoint(),
		AccessKeyID: testID, AccessKeySecret: testSecret, NoMetadata: true, NoProxy: true}
}

func TestStoreAgainstTheSandbox(t *testing.T) {
	_, cfg := rehearse(t, sandbox.Options{})
	st := store(t, cfg)
	ctx := t.Context()
	info, err := st.BucketInfo(ctx, "bucket")
	if err != nil || info.Region != "cn-hangzhou" {
		t.Fatalf("%+v, %v", info, err)
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // 640 kB
	base := importer.Object{Bucket: "bucket", Key: "base/a b+c%2F&=?#~*'é漢.qcow2"}
	was, err := st.Put(ctx, base, content, importer.PutOptions{Meta: map[string]string{"x": "y"}, Tags: map[string]string{"a b": "c&d"}, ForbidOverwrite: true})
	if err != nil || !was.HasCRC64 || was.CRC64 != crc64.Checksum(content, crc64.MakeTable(crc64.ECMA)) {
		t.Fatalf("%+v, %v", was, err)
	}
	if _, err := st.Put(ctx, base, content, importer.PutOptions{ForbidOverwrite: true}); !isCode(err, "FileAlreadyExists") {
		t.Errorf("over another: %v", err)
	}
	head, err := st.Head(ctx, base)
	if err != nil || head.Size != int64(len(content)) || head.ETag != was.ETag || head.Meta["x"] != "y" || head.CRC64 != was.CRC64 {
		t.Errorf("%+v, %v", head, err)
	}
	if _, err := st.Head(ctx, importer.Object{Bucket: "bucket", Key: "none"}); !isCode(err, "NoSuchKey") {
		t.Errorf("a missing object: %v", err)
	}
	r, err := st.Read(ctx, base, head.ETag, 1000, 5000)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	r.Close()
	if err != nil || !bytes.Equal(got, content[1000:6000]) {
		t.Errorf("%d other bytes, %v", len(got), err)
	}
	for off, n := range map[int64]int64{int64(len(content)) - 10: 20, int64(len(content)) + 5: 1} {
		if r, err := st.Read(ctx, base, "", off, n); err == nil {
			r.Close()
			t.Errorf("%d bytes at %d were read", n, off)
		}
	}
	if _, err := st.Read(ctx, base, `"other"`, 0, 1); !isCode(err, "PreconditionFailed") {
		t.Errorf("another ETag: %v", err)
	}

	// A new head, a copied middle and a new tail.
	dst := importer.Object{Bucket: "bucket", Key: "out/n.qcow2"}
	u, err := st.CreateUpload(ctx, dst, importer.PutOptions{Encryption: "AES256"})
	if err != nil {
		t.Fatal(err)
	}
	newHead, tail := bytes.Repeat([]byte("H"), 102_400), []byte("tail")
	p3, err3 := st.UploadPart(ctx, u, 3, bytes.NewReader(tail), int64(len(tail)))
	p1, err1 := st.UploadPart(ctx, u, 1, bytes.NewReader(newHead), int64(len(newHead)))
	p2, err2 := st.CopyPart(ctx, u, 2, base, head.ETag, 102_400, 200_000)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	if _, err := st.CopyPart(ctx, u, 2, base, `"other"`, 0, 200_000); !isCode(err, "PreconditionFailed") {
		t.Errorf("copy of another: %v", err)
	}
	parts, err := st.ListParts(ctx, u)
	if err != nil || len(parts) != 3 || parts[1].Size != 200_000 || parts[0].ETag != p1.ETag || parts[1].ETag != p2.ETag {
		t.Errorf("%+v, %v; copied %+v", parts, err, p2)
	}
	if list, err := st.ListUploads(ctx, "bucket", "out/"); err != nil || len(list) != 1 || list[0].ID != u.ID || list[0].Key != dst.Key {
		t.Errorf("%+v, %v", list, err)
	}
	want := append(append(append([]byte{}, newHead...), content[102_400:302_400]...), tail...)
	done, err := st.Complete(ctx, u, []importer.Part{p3, p1, p2}, true)
	if err != nil || done.Size != int64(len(want)) || done.HasCRC64 && done.CRC64 != crc64.Checksum(want, crc64.MakeTable(crc64.ECMA)) {
		t.Fatalf("%+v, %v", done, err)
	}
	if r, err = st.Read(ctx, dst, done.ETag, 0, done.Size); err != nil {
		t.Fatal(err)
	}
	got, _ = io.ReadAll(r)
	r.Close()
	if !bytes.Equal(got, want) {
		t.Error("other bytes were put together")
	}
	if list, err := st.List(ctx, "bucket", ""); err != nil || len(list) != 2 || list[0].Key != base.Key || list[1].ETag != done.ETag {
		t.Errorf("%+v, %v", list, err)
	}
	u, err = st.CreateUpload(ctx, dst, importer.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := st.Abort(ctx, u); err != nil {
			t.Error(err)
		}
		if err := st.Delete(ctx, dst); err != nil {
			t.Error(err)
		}
	}
}

func TestRolesAndDoctorAgainstTheSandbox(t *testing.T) {
	for _, tc := range []struct{ missing, want string }{{"", "import:ok"}, {sandbox.NoRoleAcount, "import:failed"}, {sandbox.NoRoleAccount, "import:failed"}} {
		sb, cfg := rehearse(t, sandbox.Options{ECS: sandbox.ECSOptions{MissingRole: tc.missing}})
		metadata := strings.TrimPrefix(sb.MetadataEndpoint(), "http://")
		byKey := cfg
		byRole, byInstance := cfg, cfg
		byRole.AccessKeyID, byRole.AccessKeySecret = "", ""
		byRole.Home = home(t, map[string]string{cliFile: `{"current":"a","profiles":[{"name":"a","mode":"RamRoleArn","access_key_id":"` + testID +
			`","access_key_secret":"` + testSecret + `","ram_role_arn":"acs:ram::1234567890123456:role/ci"}]}`})
		byInstance.AccessKeyID, byInstance.AccessKeySecret, byInstance.NoMetadata = "", "", false
		byInstance.Dial = loopbackDial(t, map[string]string{metadataHost + ":80": metadata})
		for _, cfg := range []Config{byKey, byRole, byInstance} {
			c := newClients(t, cfg)
			list := c.Doctor(t.Context(), Probe{Bucket: "bucket", Prefix: "p/"})
			want := "credentials:ok region:ok endpoint:ok endpoint:ok ecs:ok bucket:ok write:ok " + tc.want + " images:ok clock:ok"
			if got := results(list); got != want {
				t.Errorf("%s, role %q: %s\n%+v", c.Source(), tc.missing, got, list)
			}
			st, _ := c.Store("")
			if left, err := st.ListUploads(t.Context(), "bucket", ""); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	}
}

func TestWrongKeysAreRefusedByTheSandbox(t *testing.T) {
	_, cfg := rehearse(t, sandbox.Options{})
	cfg.AccessKeySecret = "not-the-secret"
	c := newClients(t, cfg)
	st, _ := c.Store("")
	if _, err := st.List(t.Context(), "bucket", ""); !isCode(err, "SignatureDoesNotMatch") {
		t.Errorf("OSS: %v", err)
	}
	if _, err := c.ECS().Regions(t.Context()); !isCode(err, "SignatureDoesNotMatch") {
		t.Errorf("ECS: %v", err)
	}
}
