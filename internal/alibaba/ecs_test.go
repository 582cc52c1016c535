package alibaba

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"remaster/pkg/importer"
)

// fakeECS answers each action with a document.
func fakeECS(t *testing.T, replies map[string]string) (*server, *ECS) {
	t.Helper()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		body, ok := replies[q.Get("Action")+q.Get("PageNumber")]
		if !ok {
			body = replies[q.Get("Action")]
		}
		if status, rest, ok := strings.Cut(body, " "); ok && len(status) == 3 {
			if n, err := strconv.Atoi(status); err == nil {
				w.Header().Set("Location", "/elsewhere") // which is not to be followed
				w.WriteHeader(n)
				body = rest
			}
		}
		io.WriteString(w, body)
	})
	return s, newClients(t, staticConfig(s)).ECS()
}

func wantQuery(t *testing.T, r *http.Request, want string) {
	t.Helper()
	q := r.URL.Query()
	for _, p := range strings.Split(want, ";") {
		name, v, _ := strings.Cut(p, "=")
		if (v == "-") == q.Has(name) || v != "-" && q.Get(name) != v {
			t.Errorf("%s: %s is %q, want %q", q.Get("Action"), name, q[name], v)
		}
	}
	if r.Method != http.MethodPost || q.Get("Version") != "2014-05-26" || q.Get("Signature") == "" || q.Get("SecurityToken") != testToken {
		t.Errorf("%s %v", r.Method, q)
	}
}

func TestImportImageParameters(t *testing.T) {
	s, e := fakeECS(t, map[string]string{"ImportImage": `{"TaskId":"t-1","ImageId":"m-1","RegionId":"eu","RequestId":"R1"}`})
	got, err := e.ImportImage(t.Context(), importer.ImportRequest{
		Region: "eu-central-1", Object: importer.Object{Bucket: "b", Key: "k/x y.qcow2"}, Format: "QCOW2", DiskSizeGiB: 20,
		Name: "n", Description: "d", Architecture: "x86_64", OSType: "linux", Platform: "Aliyun", BootMode: "UEFI", LicenseType: "Auto",
		Detection: "Standard", RoleName: "role", ResourceGroup: "rg", NVMe: "supported", IMDS: "v2",
		Tags: map[string]string{"b": "2", "a": "1"}, ClientToken: "ct", DryRun: true,
	})
	if err != nil || got != (importer.ImportStarted{ImageID: "m-1", TaskID: "t-1", RequestID: "R1"}) {
		t.Fatalf("%+v, %v", got, err)
	}
	wantQuery(t, s.last(t), "Action=ImportImage;RegionId=eu-central-1;DiskDeviceMapping.1.OSSBucket=b;DiskDeviceMapping.1.OSSObject=k/x y.qcow2;"+
		"DiskDeviceMapping.1.Format=QCOW2;DiskDeviceMapping.1.DiskImageSize=20;ImageName=n;Description=d;Architecture=x86_64;OSType=linux;Platform=Aliyun;"+
		"BootMode=UEFI;LicenseType=Auto;DetectionStrategy=Standard;RoleName=role;ResourceGroupId=rg;Features.NvmeSupport=supported;Features.ImdsSupport=v2;"+
		"Tag.1.Key=a;Tag.1.Value=1;Tag.2.Key=b;Tag.2.Value=2;ClientToken=ct;DryRun=true")
	if _, err := e.ImportImage(t.Context(), importer.ImportRequest{Name: "n"}); err != nil {
		t.Fatal(err)
	}
	wantQuery(t, s.last(t), "RegionId=cn-beijing;DryRun=-;Description=-;DiskDeviceMapping.1.DiskImageSize=-;Features.NvmeSupport=-;Tag.1.Key=-;RoleName=-;DetectionStrategy=-")
}

func TestImagesOfEveryStateAndAllPages(t *testing.T) {
	var page []string
	for i := range ecsPage {
		page = append(page, fmt.Sprintf(`{"ImageId":"m-%d","Status":"Creating"}`, i))
	}
	s, e := fakeECS(t, map[string]string{
		"DescribeImages1": `{"TotalCount":101,"Images":{"Image":[` + strings.Join(page, ",") + `]}}`,
		"DescribeImages2": `{"TotalCount":101,"Images":{"Image":[{"ImageId":"m-99"},{"ImageId":"m-x","ImageName":"n","Description":"d","Status":"Deprecated","Progress":"100%",
			"BootMode":"UEFI","Architecture":"arm64","Platform":"Aliyun","ImageFamily":"f","Size":"20","CreationTime":"2026-11-22T10:00:00Z",
			"Tags":{"Tag":[{"TagKey":"k","TagValue":"v"},{"Key":"k2","Value":"v2"}]},
			"DiskDeviceMappings":{"DiskDeviceMapping":[{"SnapshotId":"s-1","ImportOSSBucket":"b","ImportOSSObject":"o","Size":20},{"SnapshotId":"s-2"}]},
			"DetectionOptions":{"Status":"Finished","Items":{"Item":[{"Name":"fstab","Value":"x","RiskLevel":"High","RiskCode":"c"}]}}}]}}`,
	})
	list, err := e.Images(t.Context(), importer.ImageQuery{Region: "eu-central-1", Name: "n", ImageID: "i", Family: "f"})
	if err != nil || len(list) != 101 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	got := list[100]
	got.Created = got.Created.UTC()
	want := importer.Image{ID: "m-x", Name: "n", Description: "d", Region: "eu-central-1", Status: "Deprecated", Progress: "100%", BootMode: "UEFI", Architecture: "arm64",
		Platform: "Aliyun", Family: "f", SizeGiB: 20, Created: parseTime("2026-11-22T10:00Z"), Snapshots: []string{"s-1", "s-2"},
		Sources: []importer.Object{{Bucket: "b", Key: "o"}}, Tags: map[string]string{"k": "v", "k2": "v2"},
		Check: importer.ImageCheck{Status: "Finished", Items: []importer.CheckItem{{Name: "fstab", Value: "x", RiskLevel: "High", RiskCode: "c"}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	wantQuery(t, s.last(t), "RegionId=eu-central-1;ImageOwnerAlias=self;Status="+allStatuses+";ImageName=n;ImageId=i;ImageFamily=f;PageNumber=2;PageSize=100")
}

func TestTasks(t *testing.T) {
	s, e := fakeECS(t, map[string]string{
		"DescribeTasks": `{"TaskSet":{"Task":[{"TaskId":"t-1","TaskAction":"ImportImage","TaskStatus":"Processing","SupportCancel":"true","CreationTime":"2026-11-22T10:00Z","ResourceId":"m-1"},
			{"TaskId":"t-2","TaskAction":"ImportImage","TaskStatus":"Finished","FailedReason":"r"},{"TaskId":"t-3","TaskAction":"ExportImage","TaskStatus":"Processing"}]}}`,
		"DescribeTaskAttribute": `{"TaskId":"t-1","TaskAction":"ImportImage","TaskStatus":"Failed","TaskProcess":"37%","SupportCancel":"false","CreationTime":"2026-11-22T10:00Z",
			"OperationProgressSet":{"OperationProgress":[{"OperationStatus":"Failed","ErrorCode":"ImportImageFailed","ErrorMsg":"why","RelatedItemSet":{"RelatedItem":[{"Name":"ImageId","Value":"m-1"}]}}]}}`,
	})
	list, err := e.Tasks(t.Context(), "cn-beijing", "ImportImage", "Waiting", "Processing")
	if err != nil || len(list) != 1 || list[0].ID != "t-1" || !list[0].Cancelable || list[0].ImageID != "m-1" || list[0].Created.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	wantQuery(t, s.last(t), "TaskAction=ImportImage;TaskStatus=-;PageNumber=1;PageSize=100")
	if list, err = e.Tasks(t.Context(), "cn-beijing", "ImportImage", "Finished"); err != nil || len(list) != 1 || list[0].ErrorMsg != "r" {
		t.Errorf("%+v, %v", list, err)
	}
	wantQuery(t, s.last(t), "TaskStatus=Finished")
	task, err := e.Task(t.Context(), "eu-central-1", "t-1")
	if err != nil || task.Progress != "37%" || task.ErrorCode != "ImportImageFailed" || task.ErrorMsg != "why" || task.ImageID != "m-1" || task.Cancelable {
		t.Errorf("%+v, %v", task, err)
	}
	wantQuery(t, s.last(t), "TaskId=t-1;RegionId=eu-central-1")
	if _, err := e.Task(t.Context(), "eu-central-1", "t-9"); err == nil {
		t.Error("a reply about another task was taken")
	}
}

func TestOtherCallsOfECS(t *testing.T) {
	s, e := fakeECS(t, map[string]string{"CopyImage": `{"ImageId":"m-2"}`,
		"DescribeRegions": `{"Regions":{"Region":[{"RegionId":"cn-hangzhou"},{"RegionId":"cn-beijing"}]}}`})
	ctx, r := t.Context(), "eu-central-1"
	empty, name := "", "new"
	accounts := make([]string, 23)
	for i := range accounts {
		accounts[i] = fmt.Sprint("a", i)
	}
	for _, tc := range []struct {
		f    func() error
		want string
	}{
		{func() error { return e.CancelTask(ctx, r, "t") }, "Action=CancelTask;TaskId=t;RegionId=eu-central-1"},
		{func() error { return e.CancelCopy(ctx, r, "m") }, "Action=CancelCopyImage;ImageId=m"},
		{func() error { return e.DeleteImage(ctx, r, "m", false) }, "Action=DeleteImage;ImageId=m;Force=-"},
		{func() error { return e.DeleteImage(ctx, r, "m", true) }, "Action=DeleteImage;Force=true"},
		{func() error { return e.DeleteSnapshot(ctx, r, "s") }, "Action=DeleteSnapshot;SnapshotId=s"},
		{func() error {
			return e.ModifyImage(ctx, r, "m", importer.ImageChange{Name: &name, Description: &empty})
		},
			"Action=ModifyImageAttribute;ImageId=m;ImageName=new;Description=;Status=-;BootMode=-;ImageFamily=-"},
		{func() error { return e.ShareImage(ctx, r, "m", accounts) },
			"Action=ModifyImageSharePermission;ImageId=m;AddAccount.1=a20;AddAccount.3=a22;AddAccount.4=-"},
		{func() error {
			id, err := e.CopyImage(ctx, importer.CopyRequest{Region: r, ImageID: "m", ToRegion: "cn-beijing", Name: "n", Description: "d",
				Encrypted: true, KMSKeyID: "k", ResourceGroup: "g", ClientToken: "ct", Tags: map[string]string{"a": "1"}})
			if id != "m-2" {
				t.Error(id)
			}
			return err
		}, "Action=CopyImage;RegionId=eu-central-1;ImageId=m;DestinationRegionId=cn-beijing;DestinationImageName=n;DestinationDescription=d;Encrypted=true;KMSKeyId=k;ResourceGroupId=g;ClientToken=ct;Tag.1.Key=a"},
		{func() error {
			list, err := e.Regions(ctx)
			if strings.Join(list, " ") != "cn-beijing cn-hangzhou" {
				t.Error(list)
			}
			return err
		}, "Action=DescribeRegions"},
	} {
		if err := tc.f(); err != nil {
			t.Errorf("%s: %v", tc.want, err)
			continue
		}
		wantQuery(t, s.last(t), tc.want)
	}
}

func TestECSErrors(t *testing.T) {
	for _, tc := range []struct {
		reply string
		want  importer.ServiceError
	}{
		{`403 {"RequestId":"RID","HostId":"h","Code":"NoSetRoletoECSServiceAcount","Message":"no role"}`, importer.ServiceError{Op: "ImportImage", Status: 403, Code: "NoSetRoletoECSServiceAcount", Message: "no role", RequestID: "RID"}},
		{`400 {"RequestId":"RID","Code":"DryRunOperation","Message":"passed"}`, importer.ServiceError{Op: "ImportImage", Status: 400, Code: "DryRunOperation", Message: "passed", RequestID: "RID"}},
		{"503 <html>busy\n\nnow</html>", importer.ServiceError{Op: "ImportImage", Status: 503, Message: "<html>busy now</html>"}},
		{`500 {"Code":500,"Message":["odd"]}`, importer.ServiceError{Op: "ImportImage", Status: 500, Message: "reply that the SDK can't read: HTTP 500"}},
		{`403 {"Code":"SignatureDoesNotMatch","Message":"Wrong. server string to sign is:POST&%2F&AccessKeyId","RequestId":"R"}`,
			importer.ServiceError{Op: "ImportImage", Status: 403, Code: "SignatureDoesNotMatch", Message: "Wrong.", RequestID: "R"}},
		{`307 {}`, importer.ServiceError{Op: "ImportImage", Status: 307, Message: "{}"}},
		{`302 {}`, importer.ServiceError{Op: "ImportImage", Status: 302, Message: "{}"}},
	} {
		s, e := fakeECS(t, map[string]string{"ImportImage": tc.reply})
		_, err := e.ImportImage(t.Context(), importer.ImportRequest{Name: "n"})
		got, ok := errors.AsType[*importer.ServiceError](err)
		if !ok || *got != tc.want || s.count() != 1 {
			t.Errorf("%s: %v (%+v), %d requests", tc.reply, err, got, s.count())
		}
	}
	for _, reply := range []string{`{}`, `not JSON`, ``} {
		_, e := fakeECS(t, map[string]string{"ImportImage": reply})
		if _, err := e.ImportImage(t.Context(), importer.ImportRequest{Name: "n"}); err == nil {
			t.Errorf("%q was taken for a success", reply)
		}
	}
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	s.Close()
	_, err := newClients(t, staticConfig(s)).ECS().Regions(t.Context())
	if err == nil || !strings.Contains(err.Error(), "DescribeRegions: "+s.addr()) {
		t.Errorf("nobody there: %v", err)
	}
	noSecret(t, "error", err.Error())
}

func TestECSIsUsedByManyAtOnce(t *testing.T) {
	_, e := fakeECS(t, map[string]string{"DescribeImages": `{"Images":{"Image":[{"ImageId":"m"}]}}`})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			region := fmt.Sprintf("cn-r%d", i)
			list, err := e.Images(t.Context(), importer.ImageQuery{Region: region})
			if err != nil || len(list) != 1 || list[0].Region != region {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
	wg.Wait()
}
